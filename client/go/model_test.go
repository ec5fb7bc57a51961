package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	pb "hfopt/worker/hfoptv1"
)

func TestWindowsAsPublished(t *testing.T) {
	var vectors struct {
		Windows []struct {
			Examples, Begin, Count uint64
			Shard, Shards          uint32
			Indices                []int
		}
	}
	text := must(os.ReadFile("../../proto/testdata/windows.json"))
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Windows) == 0 {
		t.Fatalf("%d windows, %v", len(vectors.Windows), err)
	}
	for _, c := range vectors.Windows {
		all := make([]int, c.Examples)
		for i := range all {
			all[i] = i
		}
		got := window(all, &pb.Slice{Shard: c.Shard, Shards: c.Shards, Begin: c.Begin, Count: c.Count})
		if !slices.Equal(got, c.Indices) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// That the files' order is mixed: else windows of them would not be samples.
func TestEveryWindowHasBothClasses(t *testing.T) {
	training, heldOut := loadDigits("../models/digits")
	if len(training) != 1400 || len(heldOut) != 397 {
		t.Fatalf("%d + %d examples", len(training), len(heldOut))
	}
	for part := range slices.Chunk(training, 100) {
		large := 0.0
		for _, e := range part {
			large += e.t
		}
		near(t, "digits from 5 on", large, 50, 10)
	}
}

func TestWhatCannotBeAnsweredIsAFailure(t *testing.T) {
	training, _ := loadDigits("../models/digits")
	data[pb.DataSet_DATA_SET_TRAINING] = training
	vectors.Store("theta", make([]float64, numParameters))
	slice := &pb.Slice{DataSet: pb.DataSet_DATA_SET_TRAINING, Shards: 1, Count: 10}
	gradient := func(base string, subBatches uint32, secondMoment bool, slice *pb.Slice) *pb.EvaluationRequest {
		request := &pb.GradientRequest{Point: &pb.Point{Base: []byte(base)}, SubBatches: subBatches, SecondMoment: secondMoment}
		return &pb.EvaluationRequest{Slice: slice, Kind: &pb.EvaluationRequest_Gradient{Gradient: request}}
	}
	answer := &pb.Answer{}
	if vector := evaluate(gradient("theta", 0, false, slice), answer); len(vector) != numParameters || answer.GetGradient() == nil {
		t.Fatalf("a gradient is answered with %v", answer)
	}
	for want, request := range map[string]*pb.EvaluationRequest{
		"no second moments and no sub-batches":   gradient("theta", 2, false, slice),
		"has no second moments":                  gradient("theta", 0, true, slice),
		"vector 7a is not here":                  gradient("z", 0, false, slice),
		"does not fit into a shard of 0":         gradient("theta", 0, false, &pb.Slice{Shards: 1, Count: 1}),
		"no shard 1 of 1":                        gradient("theta", 0, false, &pb.Slice{Shard: 1, Shards: 1}),
		"request that this worker does not know": {Slice: slice},
	} {
		answer := &pb.Answer{}
		vector := evaluate(request, answer)
		if message := answer.GetFailure().GetMessage(); vector != nil || !strings.Contains(message, want) {
			t.Errorf("%v instead of a failure with %q", answer, want)
		}
	}
}

// direction is a vector of numbers in -1..1.
func direction(seed float64) []float64 {
	v := make([]float64, numParameters)
	for i := range v {
		v[i] = math.Sin(float64(i+1) * (seed + 1.7))
	}
	return v
}

func along(theta, v []float64, step float64) []float64 {
	x := slices.Clone(theta)
	add(x, step, v)
	return x
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s is %g, want %g", what, got, want)
	}
}

func TestLossIsThatOfTheFormulaAlsoFarAway(t *testing.T) {
	x, theta := make([]float64, numParameters), make([]float64, numParameters)
	x[numParameters-1] = 1
	for _, c := range []struct{ z, t, loss, errors float64 }{
		{0, 0, math.Ln2, 0}, {2, 0, math.Log(1 + math.Exp(2)), 1}, {2, 1, math.Log(1+math.Exp(2)) - 2, 0},
		{-3, 1, math.Log(1+math.Exp(-3)) + 3, 1}, {1000, 0, 1000, 1}, {1000, 1, 0, 0}, {-1000, 1, 1000, 1}} {
		theta[numParameters-1] = c.z
		got, errors := loss(theta, []example{{x, c.t}})
		near(t, fmt.Sprintf("loss at %g of %g", c.z, c.t), got, c.loss, 1e-15)
		near(t, fmt.Sprintf("errors at %g of %g", c.z, c.t), errors, c.errors, 0)
	}
}

func TestGradientIsTheDerivativeOfTheLoss(t *testing.T) {
	training, _ := loadDigits("../models/digits")
	theta, examples, h := direction(0), training[100:130], 1e-5
	g := gradient(theta, examples)
	for seed := range 3 {
		v := direction(float64(seed + 1))
		up, _ := loss(along(theta, v, h), examples)
		down, _ := loss(along(theta, v, -h), examples)
		near(t, "derivative", (up-down)/(2*h), dot(g, v), 1e-6*math.Sqrt(dot(g, g)*dot(v, v)))
	}
}

// z is linear in theta, so that the Gauss-Newton matrix is the Hessian.
func TestProductIsTheDerivativeOfTheGradient(t *testing.T) {
	_, heldOut := loadDigits("../models/digits")
	theta, v, examples, h := direction(0), direction(1), heldOut[:20], 1e-5
	gv := product(theta, v, examples)
	up, down := gradient(along(theta, v, h), examples), gradient(along(theta, v, -h), examples)
	if dot(gv, gv) == 0 {
		t.Error("the product is 0")
	}
	for i := range gv {
		near(t, fmt.Sprintf("element %d", i), (up[i]-down[i])/(2*h), gv[i], 1e-7*math.Sqrt(dot(gv, gv)))
	}
}
