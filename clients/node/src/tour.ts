// A deploy worker's first steps: place a project, repeat, read a refusal, give everything back.

import { create } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { ResourceAllocator, type EnsureAllocationResponse } from "../gen/resourceallocator/v1/resource_allocator_pb.js";
import { EnsureOutcome, ResourcesSchema } from "../gen/resourceallocator/v1/types_pb.js";

const baseUrl = process.env["RESOURCE_ALLOCATOR_ENDPOINT"] ?? "http://127.0.0.1:50051";
const allocator = createClient(ResourceAllocator, createGrpcTransport({ baseUrl, defaultTimeoutMs: 10_000 }));

function show(answer: EnsureAllocationResponse): void {
  console.log(`${EnsureOutcome[answer.outcome]} on ${answer.placement?.serverHandle}`);
  for (const { module, serverAddress, port } of answer.allocations) {
    console.log(`  ${module}: ${serverAddress}:${port}`);
  }
}

const request = { projectId: "node-tour", modules: [{ name: "backend" }] };
show(await allocator.ensureAllocation(request));
// A lost answer is harmless: the same call again gives the same.
show(await allocator.ensureAllocation(request));

try {
  const resources = create(ResourcesSchema, { ramMb: 99_999_999n });
  await allocator.ensureAllocation({ projectId: "too-big", resources });
} catch (error) {
  // Every refusal has an ErrorInfo; its metadata says what kind of act is needed.
  const [info] = ConnectError.from(error).findDetails(ErrorInfoSchema);
  console.log(`refused: ${info?.reason}, disposition ${info?.metadata["disposition"]}`);
}

const { released } = await allocator.releaseAllocation({ projectId: "node-tour" });
for (const { serverAddress, port } of released) {
  console.log(`gave back ${serverAddress}:${port}`);
}
process.exit(0);
