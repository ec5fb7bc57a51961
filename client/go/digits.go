package main

import (
	"encoding/binary"
	"log"
	"math"
	"math/bits"
	"os"
	"slices"
)

const (
	inputs    = 64 + 1 // pixels, and 1 for the bias
	classes   = 10
	training  = 1400 // examples; the others are held out
	dataSeed  = 1    // of the examples' order
	signature = "softmax regression 64-10, digits images, 1400 + 397, seed 1"
)

// example is a handwritten digit, its pixels in 0..1.
type example struct {
	x     [inputs]float64
	label byte
}

// digits is a softmax regression as hfopt wants a model: loss, gradient and Gauss-Newton product, each a sum over examples. theta is a
// matrix W, one row of weights for each input. In formulas: z = x W, p = softmax(z), t the one-hot label, loss = -log p[label].
type digits struct{ training, heldOut []example }

func loadDigits(folder string) digits {
	images, labels := readNpy(folder+"/images.npy"), readNpy(folder+"/labels.npy")
	read := func(first, count int, seed uint64) []example {
		examples := make([]example, count)
		for i, j := range shuffled(seed, count) {
			for k, pixel := range images[(first+j)*(inputs-1) : (first+j+1)*(inputs-1)] {
				examples[i].x[k] = float64(pixel) / 16
			}
			examples[i].x[inputs-1], examples[i].label = 1, labels[first+j]
		}
		return examples
	}
	return digits{read(0, training, dataSeed), read(training, len(labels)-training, dataSeed+1)}
}

// readNpy returns the data of an array of bytes, which follows magic and version (8 bytes), the length of a description (2) and that.
func readNpy(path string) []byte {
	file, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	return file[10+int(binary.LittleEndian.Uint16(file[8:])):]
}

// initialParameters are uniform in +-sqrt(6 / (inputs + outputs)), biases 0 (Glorot & Bengio 2010).
func (digits) initialParameters(seed uint64) []float64 {
	theta, generator := make([]float64, inputs*classes), splitMix64(seed)
	for i := range (inputs - 1) * classes {
		theta[i] = math.Sqrt(6.0/(inputs-1+classes)) * (2*float64(generator.next()>>11)*0x1p-53 - 1)
	}
	return theta
}

func (digits) loss(theta []float64, examples []example) (loss, errors float64) {
	for _, e := range examples {
		p, exampleLoss := predict(theta, e)
		loss += exampleLoss
		if p[e.label] < slices.Max(p[:]) {
			errors++
		}
	}
	return loss, errors
}

// gradient also returns the sum of the examples' squared gradients. An example's gradient is the outer product of x and p - t.
func (digits) gradient(theta []float64, examples []example) (loss float64, gradient, squares []float64) {
	gradient, squares = make([]float64, len(theta)), make([]float64, len(theta))
	for _, e := range examples {
		d, exampleLoss := predict(theta, e)
		loss += exampleLoss
		d[e.label]--
		for k, x := range e.x {
			for c := range d {
				g := x * d[c]
				gradient[k*classes+c] += g
				squares[k*classes+c] += g * g
			}
		}
	}
	return loss, gradient, squares
}

// product returns G v = sum of J' H J v, with H = diag(p) - p p' (Schraudolph 2002). J v is simple, because z is linear in theta.
func (digits) product(theta, v []float64, examples []example) []float64 {
	product := make([]float64, len(v))
	for _, e := range examples {
		p, _ := predict(theta, e)
		jv, mean := outputs(v, e), 0.0
		for c := range p {
			mean += p[c] * jv[c]
		}
		for c := range p {
			jv[c] = p[c] * (jv[c] - mean) // now H J v
		}
		for k, x := range e.x {
			for c := range jv {
				product[k*classes+c] += x * jv[c]
			}
		}
	}
	return product
}

// outputs returns z.
func outputs(theta []float64, e example) (z [classes]float64) {
	for k, x := range e.x {
		for c := range z {
			z[c] += x * theta[k*classes+c]
		}
	}
	return z
}

// predict returns p and the example's loss.
func predict(theta []float64, e example) (p [classes]float64, loss float64) {
	z := outputs(theta, e)
	highest, sum := slices.Max(z[:]), 0.0
	for c := range z {
		p[c] = math.Exp(z[c] - highest)
		sum += p[c]
	}
	for c := range p {
		p[c] /= sum
	}
	return p, math.Log(sum) + highest - z[e.label]
}

// splitMix64 is the generator of proto/testdata/shuffle.json.
type splitMix64 uint64

func (s *splitMix64) next() uint64 {
	*s += 0x9E3779B97F4A7C15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// shuffled returns 0 .. n-1 in the order that the seed gives.
func shuffled(seed uint64, n int) []int {
	order, generator := make([]int, n), splitMix64(seed)
	for i := range order {
		order[i] = i
	}
	for i := n - 1; i > 0; i-- {
		j, _ := bits.Mul64(generator.next(), uint64(i+1))
		order[i], order[j] = order[j], order[i]
	}
	return order
}
