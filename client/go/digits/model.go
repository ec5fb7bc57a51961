package main

import (
	"math"
	"os"

	"hfopt"
)

// The model is a logistic regression: is a handwritten digit 5 or more? For an example with inputs x and target t, in formulas:
// z = x'theta, p = 1 / (1 + exp(-z)), loss = log(1 + exp(z)) - t z. That is convex: zeros will do to begin with.
type model map[bool][]example // by whether they are held-out

type example struct {
	x []float64
	t float64
}

const numParameters = 64 + 1 // a weight for each pixel, and for the 1 that follows them

// loadDigits keeps the files' order, which is mixed. Sorted data want shuffling: once, by all workers alike (test vectors:
// proto/testdata/shuffle.json).
func loadDigits(folder string) model {
	const header = 128 // bytes
	images, labels := must(os.ReadFile(folder+"/images.npy")), must(os.ReadFile(folder+"/labels.npy"))
	images, labels = images[header:], labels[header:]
	examples := make([]example, len(labels))
	for i, label := range labels {
		for _, pixel := range images[64*i : 64*(i+1)] {
			examples[i].x = append(examples[i].x, float64(pixel)/16)
		}
		examples[i].x = append(examples[i].x, 1)
		examples[i].t = float64(label / 5) // 0 or 1
	}
	return model{false: examples[:len(labels)-397], true: examples[len(labels)-397:]}
}

func (m model) NumParameters() int                                   { return numParameters }
func (m model) NumExamples(heldOut bool) int                         { return len(m[heldOut]) }
func (m model) Signature() string                                    { return "logistic regression on digits, 5 or more" }
func (m model) InitialParameters(seed uint64, theta []float64) error { return nil }

func (m model) Loss(theta []float64, window hfopt.Window) (loss float64, metrics map[string]float64, err error) {
	errors := 0.0
	for _, i := range window.Indices {
		e := m[window.HeldOut][i]
		z := dot(e.x, theta)
		loss += math.Log1p(math.Exp(-math.Abs(z))) + math.Max(z, 0) - e.t*z // without exp of a large number
		if (z > 0) != (e.t > 0) {
			errors++
		}
	}
	return loss, map[string]float64{"errors": errors}, nil
}

func (m model) Gradient(theta []float64, window hfopt.Window, gradient []float64) (float64, error) {
	for _, i := range window.Indices {
		e := m[window.HeldOut][i]
		add(gradient, probability(theta, e.x)-e.t, e.x)
	}
	loss, _, err := m.Loss(theta, window)
	return loss, err
}

// Linearize keeps p (1 - p): as z is linear in theta, the Gauss-Newton matrix is the Hessian, the sum of p (1 - p) x x'.
func (m model) Linearize(theta []float64, window hfopt.Window) (func(v, product []float64) error, error) {
	data, curvature := m[window.HeldOut], make([]float64, len(window.Indices))
	for k, i := range window.Indices {
		p := probability(theta, data[i].x)
		curvature[k] = p * (1 - p)
	}
	return func(v, product []float64) error {
		for k, i := range window.Indices {
			add(product, curvature[k]*dot(data[i].x, v), data[i].x)
		}
		return nil
	}, nil
}

func probability(theta, x []float64) float64 { return 1 / (1 + math.Exp(-dot(x, theta))) }

// The conversions in dot and add keep the compiler from fused multiply-adds.
func dot(a, b []float64) (sum float64) {
	for i := range a {
		sum += float64(a[i] * b[i])
	}
	return sum
}

func add(sum []float64, factor float64, v []float64) {
	for i := range v {
		sum[i] += float64(factor * v[i])
	}
}
