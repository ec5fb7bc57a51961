// A worker of hfopt: the conversation of proto/hfopt/v1/evaluation_service.proto, in the steps of client/README.md.
// Copy it and put your own model in the place of digits.ts to have the model trained.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Worker as Thread } from "node:worker_threads";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { heldOutExamples, numParameters, signature, trainingExamples } from "./digits.js";
import type { ProtoGrpcType } from "./generated/evaluation_service.js";
import type { EvaluationServiceClient as Client } from "./generated/hfopt/v1/EvaluationService.js";
import type { EvaluationRequest__Output as EvaluationRequest } from "./generated/hfopt/v1/EvaluationRequest.js";
import type { Finished__Output as Finished } from "./generated/hfopt/v1/Finished.js";
import type { Hello } from "./generated/hfopt/v1/Hello.js";
import type { SessionRequest } from "./generated/hfopt/v1/SessionRequest.js";
import type { SessionResponse__Output as SessionResponse } from "./generated/hfopt/v1/SessionResponse.js";
import type { VectorChunk__Output as VectorChunk } from "./generated/hfopt/v1/VectorChunk.js";
import type { VectorHeader__Output as VectorHeader } from "./generated/hfopt/v1/VectorHeader.js";
import type { Message, Numbers, Result } from "./model_thread.js";

// Small enough for a slow link to carry one within the lease: before all of it is there, nothing of it is heard.
const chunkBytes = 1 << 16;
const arrays = { ELEMENT_TYPE_FLOAT32: Float32Array, ELEMENT_TYPE_FLOAT64: Float64Array }; // little-endian, as every machine with Node is
type ElementType = keyof typeof arrays;
const { status } = grpc;
const refusals = [status.INVALID_ARGUMENT, status.FAILED_PRECONDITION, status.RESOURCE_EXHAUSTED, status.PERMISSION_DENIED,
  status.UNAUTHENTICATED, status.UNIMPLEMENTED]; // dialling again cannot help

const options = parseArgs({
  options: {
    server: { type: "string", default: "127.0.0.1:7447" }, // HOST:PORT or unix:PATH
    run: { type: "string", default: "digits" },
    "worker-id": { type: "string", default: "node-1" }, // one for each worker of a run; the same when it is started again
    data: { type: "string", default: "../models/digits" }, // folder with images.npy and labels.npy
    proto: { type: "string", default: fileURLToPath(new URL("../../../proto", import.meta.url)) },
    ca: { type: "string" }, // file with the certificate that vouches for the server; without it, no encryption
  },
}).values;

/** The server broke the protocol; what it sends next cannot be trusted. */
class ProtocolError extends Error {
  readonly code = status.INVALID_ARGUMENT;
}

class Session {
  private readonly over = new AbortController();
  private readonly pending = new Set<string>(); // ids of requests
  private readonly incoming = new Map<string, { name: string; bytes: number; chunks: VectorChunk[] }>();
  private elementType?: ElementType; // known from Welcome on

  constructor(private readonly worker: Worker, private readonly call: ReturnType<Client["Session"]>) {}

  /** Until the stream ends. Returns Finished, if it came. */
  async serve(): Promise<Finished | undefined> {
    let finished: Finished | undefined;
    void this.send({ hello: this.worker.hello() });
    try {
      for await (const message of this.call as AsyncIterable<SessionResponse>) {
        if (message.welcome) this.welcome(message.welcome.elementType, message.welcome.leaseSeconds);
        else if (message.vectorHeader) this.begin(message.vectorHeader);
        else if (message.vectorChunk) this.put(message.vectorChunk);
        else if (message.evaluation) this.enqueue(message.evaluation);
        else if (message.cancel) this.pending.delete(message.cancel.requestId);
        else if (message.release) this.worker.release(message.release.vectors.map((name) => name.toString("hex")));
        else if (message.finished) finished = message.finished;
      }
      return finished;
    } catch (error) {
      if (finished) return finished;
      throw error;
    } finally {
      this.over.abort();
      this.call.cancel();
    }
  }

  /** Announces that the worker goes, and ends our half of the stream after the current answer. */
  leave(): void {
    if (!this.elementType) return this.call.cancel(); // not welcomed yet: there is nobody to take leave of
    void this.send({ drain: {} });
    void this.worker.queue.then(() => this.call.end());
  }

  /** Waits while the server reads slower than we write. What breaks the stream is thrown where it is read. */
  private async send(message: SessionRequest): Promise<void> {
    const signal = this.over.signal;
    if (!signal.aborted && !this.call.write(message)) await once(this.call, "drain", { signal }).catch(() => {});
  }

  private welcome(elementType: string | number, leaseSeconds: number): void {
    if (!(elementType in arrays)) throw new ProtocolError(`Welcome asks for element type ${elementType}, which was not offered`);
    this.elementType = elementType as ElementType;
    const renewal = setInterval(() => void this.send({ leaseRenewal: {} }), (leaseSeconds / 3) * 1000);
    this.over.signal.addEventListener("abort", () => clearInterval(renewal));
  }

  private begin({ transfer, name, size, elementType }: VectorHeader): void {
    if (Number(size) !== numParameters || elementType !== this.elementType) {
      throw new ProtocolError(`a vector of ${size} ${elementType} came, instead of ${numParameters} ${this.elementType}`);
    }
    this.incoming.set(transfer, { name: name.toString("hex"), bytes: 0, chunks: [] });
  }

  /** Keeps a chunk, and makes a vector of all when all have come. */
  private put(chunk: VectorChunk): void {
    const transfer = this.incoming.get(chunk.transfer);
    const size = numParameters * arrays[this.elementType!].BYTES_PER_ELEMENT;
    if (!transfer || Number(chunk.offset) + chunk.data.length > size) {
      throw new ProtocolError(`transfer ${chunk.transfer} has no place for ${chunk.data.length} bytes at ${chunk.offset}`);
    }
    transfer.chunks.push(chunk);
    transfer.bytes += chunk.data.length;
    if (transfer.bytes < size) return;
    const bytes = new Uint8Array(size);
    let end = 0;
    for (const { offset, data } of transfer.chunks.sort((a, b) => Number(a.offset) - Number(b.offset))) {
      if (Number(offset) !== end) throw new ProtocolError(`transfer ${chunk.transfer} has chunks that overlap at byte ${offset}`);
      bytes.set(data, end);
      end += data.length;
    }
    this.incoming.delete(chunk.transfer);
    this.worker.keep(transfer.name, new arrays[this.elementType!](bytes.buffer));
  }

  private enqueue(request: EvaluationRequest): void {
    if (this.pending.has(request.id)) return; // asked twice
    this.pending.add(request.id);
    this.worker.queue = this.worker.queue.then(() => this.answer(request));
  }

  private async answer(request: EvaluationRequest): Promise<void> {
    const unwanted = () => this.over.signal.aborted || !this.pending.has(request.id);
    if (unwanted() || this.worker.leaving) return;
    const { answer, vectors } = await this.worker.evaluate(request);
    if (unwanted()) return;
    this.pending.delete(request.id);
    for (const [index, vector] of vectors.entries()) {
      const transfer = index + 1; // free again after each answer
      const bytes = Buffer.from(new arrays[this.elementType!](vector).buffer);
      await this.send({ vectorHeader: { transfer, size: vector.length, elementType: this.elementType } });
      for (let offset = 0; offset < bytes.length; offset += chunkBytes) {
        await this.send({ vectorChunk: { transfer, offset, data: bytes.subarray(offset, offset + chunkBytes) } });
      }
    }
    await this.send({ answer: { ...answer, requestId: request.id } });
  }
}

/** What outlives a session. */
class Worker {
  leaving = false;
  queue: Promise<void> = Promise.resolve(); // of computations: one after the other
  private readonly incarnation = BigInt(Date.now()) * 1_000_000n;
  private readonly held = new Set<string>(); // names of vectors, in hexadecimal
  private session?: Session;

  constructor(private readonly client: Client, private readonly model: Thread) {}

  /** Serves until the run has ended or leave() was called. Dials again when a session breaks. */
  async run(): Promise<string> {
    const metadata = new grpc.Metadata({ waitForReady: true });
    if (process.env.HFOPT_TOKEN) metadata.set("authorization", `Bearer ${process.env.HFOPT_TOKEN}`);
    for (let pause = 100; ; pause = Math.min(2 * pause, 5000)) {
      const begin = performance.now();
      let reason = "the server closed the session";
      try {
        this.session = new Session(this, this.client.Session(metadata));
        const finished = await this.session.serve();
        if (finished) return `${finished.reason} ${finished.detail}`;
      } catch (error) {
        if (refusals.includes((error as grpc.ServiceError).code)) throw error;
        reason = (error as Error).message;
      }
      if (this.leaving) return "left as asked";
      if (performance.now() - begin > 5000) pause = 100;
      console.error(`no session: ${reason}; dialling again`);
      await sleep(pause * (0.5 + Math.random() / 2));
      if (this.leaving) return "left as asked";
    }
  }

  leave(): void {
    this.leaving = true;
    this.session?.leave();
  }

  hello(): Hello {
    return {
      protocolVersion: 1, workerId: options["worker-id"], incarnation: this.incarnation.toString(), runId: options.run,
      numParameters, trainingExamples, heldOutExamples, modelSignature: signature, elementTypes: Object.keys(arrays) as ElementType[],
      secondMoment: true, subBatches: true, initialParameters: true, heldVectors: [...this.held].map((name) => Buffer.from(name, "hex")),
    };
  }

  keep(name: string, vector: Numbers): void {
    this.held.add(name);
    this.tell({ name, vector });
  }

  release(names: string[]): void {
    names.forEach((name) => this.held.delete(name));
    this.tell({ release: names });
  }

  async evaluate(request: EvaluationRequest): Promise<Result> {
    this.tell({ request });
    return (await once(this.model, "message"))[0];
  }

  private tell(message: Message): void {
    this.model.postMessage(message);
  }
}

const { hfopt } = grpc.loadPackageDefinition(loadSync("hfopt/v1/evaluation_service.proto", {
  includeDirs: [options.proto], longs: String, enums: String, defaults: true, arrays: true, oneofs: true,
})) as unknown as ProtoGrpcType;
const client = new hfopt.v1.EvaluationService(
  options.server, options.ca ? grpc.credentials.createSsl(readFileSync(options.ca)) : grpc.credentials.createInsecure(), {
    "grpc.keepalive_time_ms": 30_000, "grpc.keepalive_timeout_ms": 20_000, "grpc.keepalive_permit_without_calls": 1,
    "grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 2_000,
  });
const model = new Thread(new URL("model_thread.js", import.meta.url), { workerData: options.data });
const worker = new Worker(client, model);
process.once("SIGINT", () => worker.leave()).once("SIGTERM", () => worker.leave()); // a second signal ends the process at once
try {
  console.log(await worker.run());
} catch (error) {
  console.error(`refused: ${(error as Error).message}`);
  process.exitCode = 1;
}
client.close();
await model.terminate();
