// A worker of hfopt: the conversation of proto/hfopt/v1/evaluation_service.proto, in the steps of client/README.md.
// Copy it and put your own model in the place of model.ts to have the model trained.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Worker as Thread } from "node:worker_threads";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./generated/evaluation_service.js";
import type { SessionRequest } from "./generated/hfopt/v1/SessionRequest.js";
import type { SessionResponse__Output as SessionResponse } from "./generated/hfopt/v1/SessionResponse.js";
import { loadDigits, modelSignature, numParameters } from "./model.js";
import type { Message, Result } from "./model_thread.js";

const options = parseArgs({
  options: {
    server: { type: "string", default: "127.0.0.1:7447" }, // HOST:PORT or unix:PATH
    run: { type: "string", default: "digits" },
    "worker-id": { type: "string", default: "node-1" }, // one for each worker of a run; the same when it is started again
    data: { type: "string", default: "../models/digits" }, // folder with images.npy and labels.npy
    ca: { type: "string" }, // file with the certificate that vouches for the server; without it, no encryption
  },
}).values;
const elementType = "ELEMENT_TYPE_FLOAT64", total = 8 * numParameters; // bytes of a vector: little-endian, as all machines with Node are
const chunkBytes = 1 << 16; // a slow link has to carry one within the lease: nothing of it is heard before all of it is there
const { INVALID_ARGUMENT, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED } = grpc.status;
const refusals = [INVALID_ARGUMENT, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED];
const data = loadDigits(options.data);
const model = new Thread(new URL("model_thread.js", import.meta.url), { workerData: data });
const tell = (message: Message) => model.postMessage(message);
const held = new Set<string>(); // names of the vectors that the model's thread has, in hexadecimal
const incarnation = `${BigInt(Date.now()) * 1_000_000n}`;
const leave = new AbortController(); // when it is time to
process.once("SIGINT", () => leave.abort()).once("SIGTERM", () => leave.abort()); // a second signal ends the process at once
let answered = Promise.resolve(); // once all requests until now are

function expect(condition: unknown, otherwise: string): asserts condition {
  if (!condition) throw Object.assign(new Error(`the server broke the protocol: ${otherwise}`), { code: INVALID_ARGUMENT });
}

/** One session, until its stream ends. */
async function serve(call: ReturnType<typeof client.Session>): Promise<void> {
  const over = new AbortController();
  const pending = new Set<string>(); // ids of requests that are still to be answered
  const incoming = new Map<string, { name: string; bytes: Uint8Array; missing: number; spans: { begin: number; end: number }[] }>();
  let renewal: NodeJS.Timeout | undefined; // from Welcome on

  /** Waits while the server reads slower than we write. What breaks the stream is thrown where it is read. */
  const send = async (message: SessionRequest) => {
    if (!over.signal.aborted && !call.writableEnded && !call.write(message)) await once(call, "drain", over).catch(() => {});
  };
  const answer = async (request: NonNullable<SessionResponse["evaluation"]>) => {
    if (!pending.has(request.id) || over.signal.aborted || leave.signal.aborted) return;
    tell({ request });
    const [{ answer, vector }] = (await once(model, "message")) as [Result];
    if (!pending.delete(request.id) || over.signal.aborted) return;
    if (vector) await send({ vectorHeader: { transfer: 1, size: vector.length, elementType } });
    for (let offset = 0; vector && offset < total; offset += chunkBytes) {
      await send({ vectorChunk: { transfer: 1, offset, data: Buffer.from(vector.buffer).subarray(offset, offset + chunkBytes) } });
    }
    await send({ answer: { ...answer, requestId: request.id } });
  };
  leave.signal.addEventListener("abort", () => {
    if (!renewal) return call.cancel(); // there is nobody to take leave of
    void send({ drain: {} });
    void answered.then(() => call.end());
  }, over);
  void send({ hello: { protocolVersion: 1, workerId: options["worker-id"], incarnation, runId: options.run, numParameters,
    trainingExamples: data.training.length, heldOutExamples: data.heldOut.length, modelSignature, elementTypes: [elementType],
    initialParameters: true, heldVectors: [...held].map((name) => Buffer.from(name, "hex")) } });
  try {
    for await (const message of call as AsyncIterable<SessionResponse>) {
      const { welcome, vectorHeader: header, vectorChunk: chunk, evaluation, cancel, release, finished } = message;
      if (welcome) {
        expect(welcome.elementType === elementType, `the run computes in ${welcome.elementType}`);
        renewal = setInterval(() => void send({ leaseRenewal: {} }), (welcome.leaseSeconds / 3) * 1000);
      } else if (header) {
        expect(Number(header.size) === numParameters && header.elementType === elementType, `a vector of ${header.elementType}`);
        incoming.set(header.transfer, { name: header.name.toString("hex"), bytes: new Uint8Array(total), missing: total, spans: [] });
      } else if (chunk) {
        const transfer = incoming.get(chunk.transfer);
        const begin = Number(chunk.offset), end = begin + chunk.data.length;
        const fits = end <= total && transfer?.spans.every((other) => end <= other.begin || other.end <= begin);
        expect(transfer && fits, `transfer ${chunk.transfer} has no place for bytes ${begin} to ${end}`);
        transfer.bytes.set(chunk.data, begin);
        transfer.spans.push({ begin, end });
        transfer.missing -= chunk.data.length;
        if (transfer.missing > 0) continue;
        incoming.delete(chunk.transfer);
        held.add(transfer.name);
        tell({ name: transfer.name, vector: new Float64Array(transfer.bytes.buffer) });
      } else if (evaluation && !pending.has(evaluation.id)) {
        pending.add(evaluation.id);
        answered = answered.then(() => answer(evaluation));
      } else if (cancel) {
        pending.delete(cancel.requestId);
      } else if (release) {
        const names = release.vectors.map((name) => name.toString("hex"));
        names.forEach((name) => held.delete(name));
        tell({ release: names });
      } else if (finished) {
        console.log(finished.reason, finished.detail);
        process.exit();
      }
    }
  } finally {
    over.abort();
    clearInterval(renewal);
    call.cancel();
  }
}

const { hfopt } = grpc.loadPackageDefinition(loadSync("hfopt/v1/evaluation_service.proto", {
  includeDirs: [decodeURI(new URL("../../../proto", import.meta.url).pathname)],
  longs: String, enums: String, defaults: true, arrays: true, oneofs: true,
})) as unknown as ProtoGrpcType;
const credentials = options.ca ? grpc.credentials.createSsl(readFileSync(options.ca)) : grpc.credentials.createInsecure();
const client = new hfopt.v1.EvaluationService(options.server, credentials, {
  "grpc.keepalive_time_ms": 30_000, "grpc.keepalive_permit_without_calls": 1, "grpc.max_reconnect_backoff_ms": 2_000 });
const metadata = new grpc.Metadata({ waitForReady: true });
if (process.env.HFOPT_TOKEN) metadata.set("authorization", `Bearer ${process.env.HFOPT_TOKEN}`);
for (let pause = 100; !leave.signal.aborted; pause = Math.min(2 * pause, 5000)) {
  const error: grpc.ServiceError | undefined = await serve(client.Session(metadata)).catch((reason) => reason);
  if (error) console.error(error.message);
  if (error && refusals.includes(error.code)) process.exit(1); // dialling again cannot help
  await sleep(pause * (0.5 + Math.random() / 2), undefined, leave).catch(() => {});
}
process.exit();
