package main

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "hfopt/worker/hfoptv1"
)

// evaluate returns the answer and its vectors, of which the first travels as transfer 1, the second as 2. What the model or its
// arguments panic with is an answer too: Failure.
func (w *worker) evaluate(request *pb.EvaluationRequest) (answer *pb.Answer, vectors [][]float64) {
	defer func() {
		if reason := recover(); reason != nil {
			failure := &pb.Failure{Code: int32(codes.Internal), Message: fmt.Sprint(reason)}
			answer, vectors = &pb.Answer{Result: &pb.Answer_Failure{Failure: failure}}, nil
		}
	}()
	switch r := request.Kind.(type) {
	case *pb.EvaluationRequest_Losses:
		examples := w.window(request.Slice)
		errors := &pb.MetricSums{Name: "errors"}
		losses := &pb.LossesAnswer{Weight: float64(len(examples)), Metrics: []*pb.MetricSums{errors}}
		for _, point := range r.Losses.Points {
			loss, wrong := w.model.loss(w.point(point), examples)
			losses.LossSums, errors.Sums = append(losses.LossSums, loss), append(errors.Sums, wrong)
		}
		return &pb.Answer{Result: &pb.Answer_Losses{Losses: losses}}, nil
	case *pb.EvaluationRequest_Gradient:
		return w.gradient(r.Gradient, w.window(request.Slice))
	case *pb.EvaluationRequest_Product:
		examples := w.window(request.Slice)
		product := w.model.product(w.point(r.Product.Point), w.vector(r.Product.Direction), examples)
		answer := &pb.ProductAnswer{ProductTransfer: 1, Weight: float64(len(examples))}
		return &pb.Answer{Result: &pb.Answer_Product{Product: answer}}, [][]float64{product}
	case *pb.EvaluationRequest_InitialParameters:
		theta := w.model.initialParameters(r.InitialParameters.Seed)
		answer := &pb.InitialParametersAnswer{ParametersTransfer: 1}
		return &pb.Answer{Result: &pb.Answer_InitialParameters{InitialParameters: answer}}, [][]float64{theta}
	}
	panic("a kind of request that this worker does not know")
}

func (w *worker) gradient(request *pb.GradientRequest, examples []example) (*pb.Answer, [][]float64) {
	theta, count, parts := w.point(request.Point), len(examples), max(1, int(request.SubBatches))
	answer := &pb.GradientAnswer{GradientTransfer: 1, Weight: float64(count)}
	sum, squares := make([]float64, len(theta)), make([]float64, len(theta))
	for part := range parts {
		batch := examples[part*count/parts : (part+1)*count/parts]
		loss, gradient, squared := w.model.gradient(theta, batch)
		answer.LossSum += loss
		norm := 0.0
		for i, g := range gradient {
			sum[i] += g
			squares[i] += squared[i]
			norm += g * g
		}
		if request.SubBatches > 0 {
			answer.SubBatches = append(answer.SubBatches, &pb.SubBatch{SquaredNorm: norm, Weight: float64(len(batch))})
		}
	}
	vectors := [][]float64{sum}
	if request.SecondMoment {
		answer.SecondMomentTransfer, vectors = proto.Uint64(2), append(vectors, squares)
	}
	return &pb.Answer{Result: &pb.Answer_Gradient{Gradient: answer}}, vectors
}

// point returns base + coefficient * vector + ..., term by term. The conversion keeps the compiler from a fused multiply-add.
func (w *worker) point(p *pb.Point) []float64 {
	x := slices.Clone(w.vector(p.Base))
	for _, term := range p.Terms {
		for i, v := range w.vector(term.Vector) {
			x[i] += float64(term.Coefficient * v)
		}
	}
	return x
}

func (w *worker) vector(name []byte) []float64 {
	v, found := w.vectors[string(name)]
	if !found {
		panic(fmt.Sprintf("vector %x is not here", name))
	}
	return v
}

// window returns the examples of a slice.
func (w *worker) window(s *pb.Slice) []example {
	data, known := map[pb.DataSet][]example{
		pb.DataSet_DATA_SET_TRAINING: w.model.training, pb.DataSet_DATA_SET_HELD_OUT: w.model.heldOut}[s.DataSet]
	if !known {
		panic(fmt.Sprint("there is no data set ", s.DataSet))
	}
	examples := []example{}
	for _, i := range indices(s, uint64(len(data))) {
		examples = append(examples, data[i])
	}
	return examples
}

// indices is the sampling rule, for a data set of n examples.
func indices(s *pb.Slice, n uint64) []uint64 {
	if s.Shard >= s.Shards {
		panic(fmt.Sprintf("there is no shard %d of %d", s.Shard, s.Shards))
	}
	low, high := uint64(s.Shard)*n/uint64(s.Shards), (uint64(s.Shard)+1)*n/uint64(s.Shards)
	if s.Count > high-low || s.Begin >= high-low && s.Count > 0 {
		panic(fmt.Sprintf("a window of %d from %d does not fit into a shard of %d", s.Count, s.Begin, high-low))
	}
	list := make([]uint64, s.Count)
	for j := range list {
		list[j] = low + (s.Begin+uint64(j))%(high-low)
	}
	return list
}
