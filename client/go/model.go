package main

import (
	"math"
	"os"
)

// The model is a logistic regression: is a handwritten digit 5 or more? For an example with inputs x and target t, in formulas:
// z = x'theta, p = 1 / (1 + exp(-z)), loss = log(1 + exp(z)) - t z. That is convex: zeros will do to begin with. All is summed over
// examples, as hfopt wants it.
const (
	numParameters  = 64 + 1 // a weight for each pixel, and for the 1 that follows them
	modelSignature = "logistic regression on digits, 5 or more"
)

type example struct {
	x []float64
	t float64
}

// loadDigits keeps the files' order, which is mixed. Sorted data want shuffling: once, by all workers alike (test vectors:
// proto/testdata/shuffle.json).
func loadDigits(folder string) (training, heldOut []example) {
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
	return examples[:len(labels)-397], examples[len(labels)-397:]
}

func loss(theta []float64, examples []example) (loss, errors float64) {
	for _, e := range examples {
		z := dot(e.x, theta)
		loss += math.Log1p(math.Exp(-math.Abs(z))) + math.Max(z, 0) - e.t*z // without exp of a large number
		if (z > 0) != (e.t > 0) {
			errors++
		}
	}
	return loss, errors
}

func gradient(theta []float64, examples []example) []float64 {
	sum := make([]float64, numParameters)
	for _, e := range examples {
		add(sum, probability(theta, e.x)-e.t, e.x)
	}
	return sum
}

// product returns G v. As z is linear in theta, the Gauss-Newton matrix G is the Hessian: the sum of p (1 - p) x x'.
func product(theta, v []float64, examples []example) []float64 {
	sum := make([]float64, numParameters)
	for _, e := range examples {
		p := probability(theta, e.x)
		add(sum, p*(1-p)*dot(e.x, v), e.x)
	}
	return sum
}

func probability(theta, x []float64) float64 { return 1 / (1 + math.Exp(-dot(x, theta))) }

func dot(a, b []float64) (sum float64) {
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

// add adds factor v. The conversion keeps the compiler from a fused multiply-add.
func add(sum []float64, factor float64, v []float64) {
	for i := range v {
		sum[i] += float64(factor * v[i])
	}
}
