// The thread that computes, so that the worker's own one renews the lease and reads meanwhile. It holds the vectors.
import { parentPort, workerData } from "node:worker_threads";
import type { Answer } from "./generated/hfopt/v1/Answer.js";
import type { EvaluationRequest__Output as Request } from "./generated/hfopt/v1/EvaluationRequest.js";
import type { Point__Output as Point } from "./generated/hfopt/v1/Point.js";
import { add, gradient, type loadDigits, loss, numParameters, product, window } from "./model.js";

export type Message = { name: string; vector: Float64Array } | { release: string[] } | { request: Request };
export type Result = { answer: Answer; vector?: Float64Array }; // without its id; the vector travels as transfer 1

const { training, heldOut } = workerData as ReturnType<typeof loadDigits>;
const vectors = new Map<string, Float64Array>(); // by name, in hexadecimal

function vector(name: Uint8Array): Float64Array {
  const found = vectors.get(Buffer.from(name).toString("hex"));
  if (!found) throw new Error(`vector ${Buffer.from(name).toString("hex")} is not here`);
  return found;
}

/** base + coefficient * vector + ..., term by term. */
function point({ base, terms }: Point): Float64Array {
  const x = vector(base).slice();
  for (const term of terms) add(x, term.coefficient, vector(term.vector));
  return x;
}

function evaluate({ slice, initialParameters, losses, gradient: g, product: p }: Request): Result {
  if (initialParameters) return { answer: { initialParameters: { parametersTransfer: 1 } }, vector: new Float64Array(numParameters) };
  const { dataSet, shard, shards, begin, count } = slice!;
  const data = { DATA_SET_TRAINING: training, DATA_SET_HELD_OUT: heldOut, DATA_SET_UNSPECIFIED: [] }[dataSet];
  const examples = window(data, shard, shards, Number(begin), Number(count));
  const weight = examples.length;
  if (losses) {
    const sums = losses.points.map((theta) => loss(point(theta), examples));
    const metrics = [{ name: "errors", sums: sums.map(({ errors }) => errors) }];
    return { answer: { losses: { lossSums: sums.map(({ loss }) => loss), weight, metrics } } };
  }
  if (g && !g.secondMoment && !g.subBatches) {
    const theta = point(g.point!);
    const answer = { gradient: { lossSum: loss(theta, examples).loss, weight, gradientTransfer: 1 } };
    return { answer, vector: gradient(theta, examples) };
  }
  if (p) return { answer: { product: { productTransfer: 1, weight } }, vector: product(point(p.point!), vector(p.direction), examples) };
  throw new Error("this worker has no second moments, no sub-batches and no other kinds of requests");
}

parentPort!.on("message", (message: Message) => {
  if ("vector" in message) return vectors.set(message.name, message.vector);
  if ("release" in message) return message.release.forEach((name) => vectors.delete(name));
  const begin = performance.now();
  try {
    const { answer, vector } = evaluate(message.request);
    parentPort!.postMessage({ answer: { ...answer, computeSeconds: (performance.now() - begin) / 1000 }, vector });
  } catch (error) { // is an answer too, of code INTERNAL
    parentPort!.postMessage({ answer: { failure: { code: 13, message: String(error) } } });
  }
});
