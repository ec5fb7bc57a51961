// The thread that computes, so that the worker's own one renews the lease and reads meanwhile. It holds the vectors.
import { parentPort, workerData } from "node:worker_threads";
import { status } from "@grpc/grpc-js";
import * as model from "./digits.js";
import type { Answer } from "./generated/hfopt/v1/Answer.js";
import type { EvaluationRequest__Output as Request } from "./generated/hfopt/v1/EvaluationRequest.js";
import type { GradientRequest__Output as GradientRequest } from "./generated/hfopt/v1/GradientRequest.js";
import type { Point__Output as Point } from "./generated/hfopt/v1/Point.js";
import type { Slice__Output as Slice } from "./generated/hfopt/v1/Slice.js";

export type Numbers = Float32Array | Float64Array;
export type Message = { name: string; vector: Numbers } | { release: string[] } | { request: Request };
/** An answer without its id, and its vectors: the first travels as transfer 1, the second as 2. */
export type Result = { answer: Answer; vectors: Float64Array[] };

const data = model.loadDigits(workerData);
const vectors = new Map<string, Numbers>(); // by name, in hexadecimal

parentPort!.on("message", (message: Message) => {
  if ("vector" in message) vectors.set(message.name, message.vector);
  else if ("release" in message) message.release.forEach((name) => vectors.delete(name));
  else parentPort!.postMessage(answer(message.request));
});

function answer(request: Request): Result {
  const begin = performance.now();
  let result: Result;
  try {
    result = evaluate(request);
  } catch (error) { // the session goes on
    result = { answer: { failure: { code: status.INTERNAL, message: String(error) } }, vectors: [] };
  }
  result.answer.computeSeconds = (performance.now() - begin) / 1000;
  return result;
}

function evaluate(request: Request): Result {
  if (request.initialParameters) {
    const theta = model.initialParameters(BigInt(request.initialParameters.seed));
    return { answer: { initialParameters: { parametersTransfer: 1 } }, vectors: [theta] };
  }
  const examples = window(request.slice!);
  const weight = examples.length;
  if (request.losses) {
    const sums = request.losses.points.map((p) => model.loss(point(p), examples));
    const metrics = [{ name: "errors", sums: sums.map((s) => s.errors) }];
    return { answer: { losses: { lossSums: sums.map((s) => s.loss), weight, metrics } }, vectors: [] };
  }
  if (request.gradient) return gradient(request.gradient, examples);
  if (request.product) {
    const product = model.product(point(request.product.point!), vector(request.product.direction), examples);
    return { answer: { product: { productTransfer: 1, weight } }, vectors: [product] };
  }
  throw new Error("a kind of request that this worker does not know");
}

function gradient(request: GradientRequest, examples: model.Example[]): Result {
  const theta = point(request.point!);
  const parts = Math.max(1, request.subBatches);
  const total = { loss: 0, gradient: new Float64Array(theta.length), squares: new Float64Array(theta.length) };
  const subBatches = [];
  for (let part = 0; part < parts; part++) {
    const cut = (p: number) => Math.floor((p * examples.length) / parts);
    const batch = examples.slice(cut(part), cut(part + 1));
    const sums = model.gradient(theta, batch);
    total.loss += sums.loss;
    sums.gradient.forEach((g, i) => (total.gradient[i] += g));
    sums.squares.forEach((g, i) => (total.squares[i] += g));
    subBatches.push({ squaredNorm: sums.gradient.reduce((sum, g) => sum + g * g, 0), weight: batch.length });
  }
  return {
    answer: {
      gradient: {
        lossSum: total.loss,
        weight: examples.length,
        gradientTransfer: 1,
        ...(request.secondMoment && { secondMomentTransfer: 2 }),
        ...(request.subBatches && { subBatches }),
      },
    },
    vectors: request.secondMoment ? [total.gradient, total.squares] : [total.gradient],
  };
}

function vector(name: Uint8Array): Numbers {
  const hex = Buffer.from(name).toString("hex");
  const found = vectors.get(hex);
  if (!found) throw new Error(`vector ${hex} is not here`);
  return found;
}

/** base + coefficient * vector + ..., term by term, each step rounded to the element type. */
function point({ base, terms }: Point): Numbers {
  const x = vector(base).slice();
  const round = x instanceof Float32Array ? Math.fround : (value: number) => value;
  for (const term of terms) {
    const coefficient = round(term.coefficient);
    vector(term.vector).forEach((v, i) => (x[i] += round(coefficient * v)));
  }
  return x;
}

/** The examples of a slice. */
function window(slice: Slice): model.Example[] {
  const examples = { DATA_SET_TRAINING: data.training, DATA_SET_HELD_OUT: data.heldOut, DATA_SET_UNSPECIFIED: undefined }[slice.dataSet];
  if (!examples) throw new Error(`there is no data set ${slice.dataSet}`);
  const { shard, shards, begin, count } = slice;
  return model.indices(shard, shards, Number(begin), Number(count), examples.length).map((i) => examples[i]);
}
