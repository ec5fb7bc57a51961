package hfopt

import (
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "hfopt/hfoptv1"
)

// linearization is kept for more products at the same point and slice.
type linearization struct {
	point   *pb.Point
	slice   *pb.Slice
	product func(v, product []float64) error
}

// evaluate returns an answer, and its vector if it has one. What the model or its arguments panic with is an answer too: Failure.
func (w *worker) evaluate(request *pb.EvaluationRequest) (answer *pb.Answer, vector []float64) {
	answer = &pb.Answer{RequestId: request.Id}
	defer func(begin time.Time) {
		if reason := recover(); reason != nil {
			w.options.Log.Error(fmt.Sprintf("answered with a failure: %v\n%s", reason, debug.Stack()))
			failure := &pb.Failure{Code: int32(codes.Internal), Message: fmt.Sprint(reason)}
			answer.Result, vector = &pb.Answer_Failure{Failure: failure}, nil
		}
		answer.ComputeSeconds = time.Since(begin).Seconds()
	}(time.Now())
	vector = make([]float64, w.hello.NumParameters)
	if r := request.GetInitialParameters(); r != nil {
		check(w.model.InitialParameters(r.Seed, vector))
		answer.Result = &pb.Answer_InitialParameters{InitialParameters: &pb.InitialParametersAnswer{ParametersTransfer: 1}}
		return answer, vector
	}
	window := newWindow(request.Slice, w.model.NumExamples)
	weight := float64(len(window.Indices))
	if request.GetProduct() == nil {
		clear(w.linearizations) // CG has ended
	}
	switch r := request.Kind.(type) {
	case *pb.EvaluationRequest_Losses:
		losses, metrics := &pb.LossesAnswer{Weight: weight}, map[string][]float64{}
		for _, p := range r.Losses.Points {
			loss, sums, err := w.model.Loss(w.point(p), window)
			check(err)
			losses.LossSums = append(losses.LossSums, loss)
			for name, sum := range sums {
				metrics[name] = append(metrics[name], sum)
			}
		}
		for name, sums := range metrics {
			losses.Metrics = append(losses.Metrics, &pb.MetricSums{Name: name, Sums: sums})
		}
		answer.Result = &pb.Answer_Losses{Losses: losses}
		return answer, nil
	case *pb.EvaluationRequest_Gradient:
		require(!r.Gradient.SecondMoment && r.Gradient.SubBatches == 0, "this worker has no second moments and no sub-batches")
		loss, err := w.model.Gradient(w.point(r.Gradient.Point), window, vector)
		check(err)
		answer.Result = &pb.Answer_Gradient{Gradient: &pb.GradientAnswer{LossSum: loss, Weight: weight, GradientTransfer: 1}}
	case *pb.EvaluationRequest_Product:
		theta, v, shard := w.point(r.Product.Point), w.resident(r.Product.Direction), request.Slice.Shard
		kept := w.linearizations[shard]
		if !proto.Equal(kept.point, r.Product.Point) || !proto.Equal(kept.slice, request.Slice) {
			delete(w.linearizations, shard) // first: two may not fit into memory
			product, err := w.model.Linearize(theta, window)
			check(err)
			kept = linearization{r.Product.Point, request.Slice, product}
			w.linearizations[shard] = kept
		}
		check(kept.product(v, vector))
		answer.Result = &pb.Answer_Product{Product: &pb.ProductAnswer{ProductTransfer: 1, Weight: weight}}
	default:
		panic("a kind of request that this worker does not know")
	}
	return answer, vector
}

// point returns base + coefficient * vector + ..., term by term. The conversion keeps the compiler from a fused multiply-add.
func (w *worker) point(p *pb.Point) []float64 {
	x := slices.Clone(w.resident(p.GetBase()))
	for _, term := range p.GetTerms() {
		for i, v := range w.resident(term.Vector) {
			x[i] += float64(term.Coefficient * v)
		}
	}
	return x
}

func (w *worker) resident(name []byte) []float64 {
	vector, found := w.vectors.Load(string(name))
	require(found, "vector %x is not here", name)
	return vector.([]float64)
}

// require and check panic, for evaluate to recover.
func require(met bool, format string, values ...any) {
	if !met {
		panic(fmt.Errorf(format, values...))
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
