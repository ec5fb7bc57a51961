package hfopt

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	pb "hfopt/hfoptv1"
)

func TestWindowsAsPublished(t *testing.T) {
	var vectors struct {
		Windows []struct {
			Examples, Begin, Count uint64
			Shard, Shards          uint32
			Indices                []int
		}
	}
	text, err := os.ReadFile("../../proto/testdata/windows.json")
	if err := errors.Join(err, json.Unmarshal(text, &vectors)); err != nil || len(vectors.Windows) == 0 {
		t.Fatalf("%d windows, %v", len(vectors.Windows), err)
	}
	for _, c := range vectors.Windows {
		for dataSet, heldOut := range map[pb.DataSet]bool{pb.DataSet_DATA_SET_TRAINING: false, pb.DataSet_DATA_SET_HELD_OUT: true} {
			slice := &pb.Slice{DataSet: dataSet, Shard: c.Shard, Shards: c.Shards, Begin: c.Begin, Count: c.Count}
			got := newWindow(slice, func(asked bool) int {
				if asked != heldOut {
					t.Errorf("%v was asked for its held-out examples: %v", dataSet, asked)
				}
				return int(c.Examples)
			})
			if got.HeldOut != heldOut || !slices.Equal(got.Indices, c.Indices) {
				t.Errorf("%+v: %v", c, got)
			}
		}
	}
}

// scale has the loss weight theta^2 / 2 for each example, over one parameter; weights are training data.
type scale struct {
	weights    []float64
	linearized int
	failing    func() error    // in place of Loss
	computing  chan<- struct{} // is told when a gradient begins
	goOn       <-chan struct{} // before it ends, if it is not nil
}

func (m *scale) NumParameters() int           { return 1 }
func (m *scale) NumExamples(heldOut bool) int { return len(m.weights) }
func (m *scale) Signature() string            { return "scale" }

func (m *scale) InitialParameters(seed uint64, theta []float64) error {
	theta[0] = float64(seed)
	return nil
}

func (m *scale) sum(window Window) (sum float64) {
	for _, i := range window.Indices {
		sum += m.weights[i]
	}
	return sum
}

func (m *scale) Loss(theta []float64, window Window) (float64, map[string]float64, error) {
	if m.failing != nil {
		return 0, nil, m.failing()
	}
	return m.sum(window) * theta[0] * theta[0] / 2, map[string]float64{"a": theta[0], "b": 2}, nil
}

func (m *scale) Gradient(theta []float64, window Window, gradient []float64) (float64, error) {
	if m.goOn != nil {
		m.computing <- struct{}{}
		<-m.goOn
	}
	gradient[0] += m.sum(window) * theta[0]
	loss, _, err := m.Loss(theta, window)
	return loss, err
}

func (m *scale) Linearize(theta []float64, window Window) (func(v, product []float64) error, error) {
	m.linearized++
	return func(v, product []float64) error {
		product[0] += m.sum(window) * v[0]
		return nil
	}, nil
}

func whole() *pb.Slice {
	return &pb.Slice{DataSet: pb.DataSet_DATA_SET_TRAINING, Shards: 1, Begin: 1, Count: 2}
}

func gradient(base string, subBatches uint32, secondMoment bool, slice *pb.Slice) *pb.EvaluationRequest {
	request := &pb.GradientRequest{Point: &pb.Point{Base: []byte(base)}, SubBatches: subBatches, SecondMoment: secondMoment}
	return &pb.EvaluationRequest{Slice: slice, Kind: &pb.EvaluationRequest_Gradient{Gradient: request}}
}

func losses(points ...*pb.Point) *pb.EvaluationRequest {
	return &pb.EvaluationRequest{Slice: whole(), Kind: &pb.EvaluationRequest_Losses{Losses: &pb.LossesRequest{Points: points}}}
}

func newTestWorker(model Model) *worker {
	w := newWorker(model, quiet(Options{}))
	w.vectors.Store("theta", []float64{3})
	w.vectors.Store("d", []float64{0.5})
	return w
}

func TestWhatIsAskedIsAnswered(t *testing.T) {
	model := &scale{weights: []float64{1, 10, 100}}
	w := newTestWorker(model)
	moved := &pb.Point{Base: []byte("theta"), Terms: []*pb.Term{{Coefficient: -2, Vector: []byte("d")}}}
	answer, _ := w.evaluate(losses(&pb.Point{Base: []byte("theta")}, moved))
	if l := answer.GetLosses(); !slices.Equal(l.GetLossSums(), []float64{495, 220}) || l.Weight != 2 || len(l.Metrics) != 2 {
		t.Errorf("losses are answered with %v", answer)
	}
	for _, m := range answer.GetLosses().GetMetrics() {
		if !slices.Equal(m.Sums, map[string][]float64{"a": {3, 2}, "b": {2, 2}}[m.Name]) {
			t.Errorf("metric %v", m)
		}
	}
	answer, vector := w.evaluate(gradient("theta", 0, false, whole()))
	if g := answer.GetGradient(); g.GetLossSum() != 495 || g.Weight != 2 || !slices.Equal(vector, []float64{330}) {
		t.Errorf("a gradient is answered with %v and %v", answer, vector)
	}
	initial := &pb.EvaluationRequest{Kind: &pb.EvaluationRequest_InitialParameters{InitialParameters: &pb.InitialParametersRequest{Seed: 7}}}
	if answer, vector := w.evaluate(initial); answer.GetInitialParameters() == nil || !slices.Equal(vector, []float64{7}) {
		t.Errorf("initial parameters are answered with %v and %v", answer, vector)
	}
	if x := w.resident([]byte("theta")); x[0] != 3 {
		t.Errorf("theta has become %v", x)
	}
}

func TestOneLinearizationServesAllProductsOfAShardAtAPoint(t *testing.T) {
	model := &scale{weights: []float64{1, 10, 100}}
	w := newTestWorker(model)
	product := func(base string, begin uint64, want float64, linearized int) {
		t.Helper()
		slice := whole()
		slice.Begin = begin
		request := &pb.ProductRequest{Point: &pb.Point{Base: []byte(base)}, Direction: []byte("d")}
		answer, vector := w.evaluate(&pb.EvaluationRequest{Slice: slice, Kind: &pb.EvaluationRequest_Product{Product: request}})
		if answer.GetProduct().GetWeight() != 2 || !slices.Equal(vector, []float64{want}) || model.linearized != linearized {
			t.Errorf("after %d linearizations %v and %v", model.linearized, answer, vector)
		}
	}
	product("theta", 1, 55, 1)
	product("theta", 1, 55, 1)
	product("theta", 2, 50.5, 2) // wraps
	product("d", 2, 50.5, 3)
	w.evaluate(losses())
	product("d", 2, 50.5, 4)
}

func TestWhatCannotBeAnsweredIsAFailure(t *testing.T) {
	model := &scale{weights: []float64{1, 10, 100}}
	w := newTestWorker(model)
	slice := func(shard, shards uint32, count uint64) *pb.Slice {
		return &pb.Slice{DataSet: pb.DataSet_DATA_SET_TRAINING, Shard: shard, Shards: shards, Count: count}
	}
	fails := func(want string, request *pb.EvaluationRequest) {
		t.Helper()
		answer, vector := w.evaluate(request)
		if message := answer.GetFailure().GetMessage(); vector != nil || !strings.Contains(message, want) {
			t.Errorf("%v instead of a failure with %q", answer, want)
		}
	}
	fails("no second moments and no sub-batches", gradient("theta", 2, false, whole()))
	fails("no second moments and no sub-batches", gradient("theta", 0, true, whole()))
	fails("vector 7a is not here", gradient("z", 0, false, whole()))
	fails("a window of 4 from 0 does not fit into a shard of 3", gradient("theta", 0, false, slice(0, 1, 4)))
	fails("no shard 1 of 1", gradient("theta", 0, false, slice(1, 1, 0)))
	fails("no data set 0", gradient("theta", 0, false, &pb.Slice{Shards: 1}))
	fails("request that this worker does not know", &pb.EvaluationRequest{Slice: whole()})
	point := &pb.Point{Base: []byte("theta")}
	model.failing = func() error { return errors.New("the disk is full") }
	fails("the disk is full", losses(point))
	model.failing = func() error { panic("out of range") }
	fails("out of range", losses(point))
	model.failing = nil
	model.weights[1] = math.NaN()
	if answer, _ := w.evaluate(losses(point)); len(answer.GetLosses().GetLossSums()) != 1 {
		t.Errorf("a loss that is not finite is answered with %v", answer)
	}
}
