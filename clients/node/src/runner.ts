// The steps of a scenario, played: calls by generated stubs, and what comes compared with what is expected.

import {
  createRegistry, type DescMethod, type DescService, fromJson, type JsonObject, type JsonValue, toJson,
} from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { Health } from "../gen/grpc/health/v1/health_pb.js";
import { ResourceAllocator } from "../gen/resourceallocator/v1/resource_allocator_pb.js";
import { ServerInventory } from "../gen/resourceallocator/v1/server_inventory_pb.js";
import { Matcher } from "./match.js";

const SERVICES: DescService[] = [Health, ResourceAllocator, ServerInventory];
const DEADLINE_MS = 30_000;
/** A status that is part of an answer has its details packed. */
const JSON_OPTIONS = { registry: createRegistry(BadRequestSchema, ErrorInfoSchema, RetryInfoSchema) };

export interface Step {
  name: string;
  call?: string;
  stream?: string;
  headers?: Record<string, string>;
  request?: JsonObject;
  answer?: JsonObject;
  messages?: JsonObject[];
  refused?: JsonObject;
}

/** A stub's method, whichever it is. */
type Call = (request: unknown, options: object) => unknown;

export class Runner {
  private readonly matcher = new Matcher();

  constructor(private readonly transport: Transport) {}

  async play(step: Step): Promise<void> {
    const { call, method } = this.stub(step.call ?? step.stream ?? "");
    const request = fromJson(method.input, this.matcher.resolve(step.request ?? {}));
    const options = { headers: step.headers ?? {}, timeoutMs: DEADLINE_MS };
    try {
      if (step.stream !== undefined) {
        await this.read(method, call(request, options) as AsyncIterable<never>, step.messages ?? [{}]);
      } else {
        const answer = toJson(method.output, (await call(request, options)) as never, JSON_OPTIONS);
        this.matcher.match("answer", step.answer ?? {}, answer);
      }
    } catch (error) {
      if (!(error instanceof ConnectError) || step.refused === undefined) {
        throw error;
      }
      const domain: JsonObject = "reason" in step.refused ? { domain: "resourceallocator" } : {};
      this.matcher.match("refused", { ...step.refused, ...domain }, refusal(error));
      return;
    }
    if (step.refused !== undefined) {
      throw new Error("it was not refused");
    }
  }

  private stub(path: string): { call: Call; method: DescMethod } {
    const [service, name] = path.split("/");
    const stubs = SERVICES.find((known) => known.typeName === service);
    const method = stubs?.methods.find((known) => known.name === name);
    if (stubs === undefined || method === undefined) {
      throw new Error(`there is no stub of ${path}`);
    }
    const client = createClient(stubs, this.transport) as Record<string, Call>;
    return { call: client[method.localName] as Call, method };
  }

  /** Each pattern is for the next message, bookmarks left out where the pattern has none. */
  private async read(method: DescMethod, messages: AsyncIterable<never>, patterns: JsonObject[]): Promise<void> {
    let next = 0;
    for await (const message of messages) {
      const told = toJson(method.output, message) as JsonObject;
      const pattern = patterns[next] ?? {};
      if ("bookmark" in told && !("bookmark" in pattern)) {
        continue;
      }
      this.matcher.match(`messages[${next}]`, pattern, told);
      next += 1;
      if (next === patterns.length) {
        return;
      }
    }
    throw new Error(`the stream ended after ${next} messages`);
  }
}

/** A refusal as the scenario tells it. */
function refusal(error: ConnectError): JsonObject {
  const name = (Code[error.code] ?? "").replace(/([a-z])([A-Z])/g, "$1_$2").toUpperCase();
  const told: Record<string, JsonValue> = {
    code: name === "CANCELED" ? "CANCELLED" : name,
    retry: error.findDetails(RetryInfoSchema).length > 0,
  };
  for (const info of error.findDetails(ErrorInfoSchema)) {
    Object.assign(told, { reason: info.reason, domain: info.domain, metadata: info.metadata });
  }
  for (const bad of error.findDetails(BadRequestSchema)) {
    told["fields"] = bad.fieldViolations.map((violation) => violation.field);
  }
  return told;
}
