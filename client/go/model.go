package hfopt

import pb "hfopt/hfoptv1"

// Model is what is trained. Losses, gradients and products are sums over the examples of a window, never means.
//
// All functions are pure: equal arguments give equal bits, in any order of calls and in every worker of the run (no dropout, no running
// averages). They are called by one goroutine at a time. Vectors have NumParameters elements: what is passed to be read must not be
// changed, and what is to be filled in comes as zeros. An error, or a panic, is told to the server and ends the run; a loss that is not
// finite is an answer, which rejects a step. Go may fuse a*b + c: float64(a*b) + c has the same bits in every build.
type Model interface {
	// NumParameters is the length n of all vectors.
	NumParameters() int
	// NumExamples counts the held-out or the training examples. Their order is fixed for ever: shuffle once, unless they are mixed.
	NumExamples(heldOut bool) int
	// Signature says what the model is, for people and for the check that all workers of a run agree: at most 4000 bytes.
	Signature() string
	// InitialParameters fills in where training begins.
	InitialParameters(seed uint64, theta []float64) error
	// Loss returns the loss at theta and other sums to be shown as means, such as {"errors": 12}: always the same names, or nil.
	Loss(theta []float64, window Window) (loss float64, metrics map[string]float64, err error)
	// Gradient fills in the gradient at theta, and returns the loss.
	Gradient(theta []float64, window Window, gradient []float64) (loss float64, err error)
	// Linearize returns the function that fills in the Gauss-Newton product J'HJ v at theta: J is the Jacobian of an example's outputs,
	// H the positive semidefinite Hessian of its loss with respect to them. It is called for many v, and may keep theta, and whatever
	// can be computed once.
	Linearize(theta []float64, window Window) (product func(v, product []float64) error, err error)
}

// Window is the examples that are asked for.
type Window struct {
	HeldOut bool  // of the held-out data; else of the training data
	Indices []int // positions in it, from 0 on
}

// newWindow is the sampling rule of evaluation.proto: a window that passes its shard's end goes on at its beginning.
func newWindow(s *pb.Slice, numExamples func(heldOut bool) int) Window {
	heldOut := s.GetDataSet() == pb.DataSet_DATA_SET_HELD_OUT
	require(heldOut || s.GetDataSet() == pb.DataSet_DATA_SET_TRAINING, "there is no data set %d", s.GetDataSet())
	require(s.Shard < s.Shards, "there is no shard %d of %d", s.Shard, s.Shards)
	shard, shards, n := uint64(s.Shard), uint64(s.Shards), uint64(numExamples(heldOut))
	lo, hi := shard*n/shards, (shard+1)*n/shards
	size := hi - lo
	require(s.Count <= size && s.Begin < max(size, 1), "a window of %d from %d does not fit into a shard of %d", s.Count, s.Begin, size)
	indices := make([]int, s.Count)
	for j := range indices {
		indices[j] = int(lo + (s.Begin+uint64(j))%size)
	}
	return Window{heldOut, indices}
}
