// What a page of an origin can do: it calls by gRPC-web with the fetch of a browser's window, which asks for leave first and hides what
// it was not told to show (CORS). Prints what came of it as JSON.
//
// Usage: browser.js ORIGIN        RESOURCE_ALLOCATOR_ENDPOINT names the service

import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { Window } from "happy-dom";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { ResourceAllocator } from "../gen/resourceallocator/v1/resource_allocator_pb.js";

const [origin] = process.argv.slice(2);
const baseUrl = process.env["RESOURCE_ALLOCATOR_ENDPOINT"];
if (origin === undefined || baseUrl === undefined) {
  throw new Error("usage: RESOURCE_ALLOCATOR_ENDPOINT=… browser.js ORIGIN");
}
const page = new Window({ url: `${origin}/index.html` });
/** The window's, which takes no headers but its own or plain ones. */
const fetch = ((url: string, init: RequestInit = {}) =>
  page.fetch(url, { ...init, headers: Object.fromEntries(new Headers(init.headers)) } as never)) as unknown as typeof globalThis.fetch;
const allocator = createClient(ResourceAllocator, createGrpcWebTransport({ baseUrl, fetch, defaultTimeoutMs: 30_000 }));

/** What a call gave, or why it failed. */
async function tell<T>(call: () => Promise<T>): Promise<T | { failed: string; reason: string | undefined }> {
  try {
    return await call();
  } catch (error) {
    const [info] = ConnectError.from(error).findDetails(ErrorInfoSchema);
    return { failed: ConnectError.from(error).message, reason: info?.reason };
  }
}

const told = {
  placed: await tell(async () => {
    const answer = await allocator.ensureAllocation({ projectId: "page", modules: [{ name: "backend" }] });
    return answer.allocations.map(({ module, port }) => ({ module, port }));
  }),
  refused: await tell(() => allocator.ensureAllocation({ projectId: "-" })),
  watched: await tell(async () => {
    for await (const { payload } of allocator.watchAllocations({ fromBeginning: true, projectId: "page" })) {
      if (payload.case === "event" && payload.value.detail.case === "completed") {
        return payload.value.detail.value.allocationCount;
      }
    }
    throw new Error("the stream ended");
  }),
  json: await tell(async () => {
    const answer = await fetch(`${baseUrl}/api/allocations/?project_id=page`);
    return { status: answer.status, body: await answer.json() };
  }),
};
console.log(JSON.stringify(told, null, 2));
process.exit(0);
