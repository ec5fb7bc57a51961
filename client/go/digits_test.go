package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"

	pb "hfopt/worker/hfoptv1"
)

func readVectors[T any](t *testing.T, name string) (vectors T) {
	text, err := os.ReadFile("../../proto/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	return vectors
}

func number(t *testing.T, text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestShufflesAsPublished(t *testing.T) {
	vectors := readVectors[struct {
		Generator []struct {
			Seed string
			Next []string
		}
		Shuffle []struct {
			Seed  string
			N     int
			Order []int
		}
	}](t, "shuffle.json")
	for _, c := range vectors.Generator {
		generator := splitMix64(number(t, c.Seed))
		for i, want := range c.Next {
			if got := generator.next(); got != number(t, want) {
				t.Errorf("seed %s: number %d is %d, want %s", c.Seed, i, got, want)
			}
		}
	}
	for _, c := range vectors.Shuffle {
		if got := shuffled(number(t, c.Seed), c.N); !slices.Equal(got, c.Order) {
			t.Errorf("seed %s: order %v, want %v", c.Seed, got, c.Order)
		}
	}
}

func TestWindowsAsPublished(t *testing.T) {
	vectors := readVectors[struct {
		Windows []struct {
			Examples, Begin, Count uint64
			Shard, Shards          uint32
			Indices                []uint64
		}
	}](t, "windows.json")
	for _, c := range vectors.Windows {
		got := indices(&pb.Slice{Shard: c.Shard, Shards: c.Shards, Begin: c.Begin, Count: c.Count}, c.Examples)
		if !slices.Equal(got, c.Indices) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// direction is a vector of numbers in -1..1.
func direction(seed uint64) []float64 {
	v, generator := make([]float64, inputs*classes), splitMix64(seed)
	for i := range v {
		v[i] = 2*float64(generator.next()>>11)*0x1p-53 - 1
	}
	return v
}

func along(theta, v []float64, step float64) []float64 {
	x := slices.Clone(theta)
	for i := range x {
		x[i] += step * v[i]
	}
	return x
}

func dot(a, b []float64) (sum float64) {
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s is %g, want %g", what, got, want)
	}
}

func TestGradientIsTheDerivativeOfTheLoss(t *testing.T) {
	m := loadDigits("../models/digits")
	theta, examples, h := m.initialParameters(1), m.training[100:130], 1e-5
	_, gradient, _ := m.gradient(theta, examples)
	for seed := range uint64(3) {
		v := direction(seed)
		up, _ := m.loss(along(theta, v, h), examples)
		down, _ := m.loss(along(theta, v, -h), examples)
		near(t, "derivative", (up-down)/(2*h), dot(gradient, v), 1e-6*math.Sqrt(dot(gradient, gradient)*dot(v, v)))
	}
}

// z is linear in theta, so that the Gauss-Newton matrix is the Hessian.
func TestProductIsTheDerivativeOfTheGradient(t *testing.T) {
	m := loadDigits("../models/digits")
	theta, v, examples, h := m.initialParameters(1), direction(1), m.heldOut[:20], 1e-5
	product := m.product(theta, v, examples)
	_, up, _ := m.gradient(along(theta, v, h), examples)
	_, down, _ := m.gradient(along(theta, v, -h), examples)
	for i := range product {
		near(t, fmt.Sprintf("element %d", i), (up[i]-down[i])/(2*h), product[i], 1e-7*math.Sqrt(dot(product, product)))
	}
}

func TestSquaresAreThoseOfSingleExamples(t *testing.T) {
	m := loadDigits("../models/digits")
	theta, want := m.initialParameters(1), make([]float64, inputs*classes)
	_, _, squares := m.gradient(theta, m.training[:10])
	for i := range 10 {
		_, g, _ := m.gradient(theta, m.training[i:i+1])
		for j := range g {
			want[j] += g[j] * g[j]
		}
	}
	for j := range want {
		near(t, fmt.Sprintf("element %d", j), squares[j], want[j], 1e-12)
	}
}
