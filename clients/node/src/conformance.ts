// Plays tests/conformance/scenario.yaml in TypeScript: on Connect's gRPC and the stubs that buf generates from proto/.
//
// Usage: conformance.js SCENARIO        RESOURCE_ALLOCATOR_ENDPOINT names the service, which must have been started anew. With
//                                       PROTOCOL=grpc-web the calls go by gRPC-web over HTTP/1.1, as a page's do.

import { readFileSync } from "node:fs";
import type { Transport } from "@connectrpc/connect";
import { createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { parse } from "yaml";
import { Runner, type Step } from "./runner.js";

const file = process.argv[2];
const protocol = process.env["PROTOCOL"] ?? "grpc";
const endpoint = process.env["RESOURCE_ALLOCATOR_ENDPOINT"];
if (file === undefined || endpoint === undefined) {
  throw new Error("usage: RESOURCE_ALLOCATOR_ENDPOINT=… conformance.js SCENARIO");
}
const transports: Record<string, () => Transport> = {
  grpc: () => createGrpcTransport({ baseUrl: endpoint }),
  "grpc-web": () => createGrpcWebTransport({ baseUrl: endpoint, httpVersion: "1.1" }),
};
const transport = transports[protocol];
if (transport === undefined) {
  throw new Error(`${protocol} is neither grpc nor grpc-web`);
}

const runner = new Runner(transport());
const { steps } = parse(readFileSync(file, "utf8")) as { steps: Step[] };
let passed = 0;
let failed = 0;
for (const step of steps) {
  try {
    await runner.play(step);
    passed += 1;
  } catch (problem) {
    failed += 1;
    console.log(`FAILED ${step.name}: ${problem instanceof Error ? problem.message : problem}`);
  }
}
const name = protocol === "grpc" ? "node" : `node-${protocol}`;
console.log(`${name}: ${passed} passed, ${failed} failed`);
// Connections that are kept would keep the process.
process.exit(failed > 0 || passed === 0 ? 1 : 0);
