package main

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"hfopt"
)

const folder = "../../models/digits"

// That the files' order is mixed: else windows of them would not be samples.
func TestEveryWindowHasBothClasses(t *testing.T) {
	digits := loadDigits(folder)
	if digits.NumExamples(false) != 1400 || digits.NumExamples(true) != 397 {
		t.Fatalf("%d + %d examples", digits.NumExamples(false), digits.NumExamples(true))
	}
	for part := range slices.Chunk(digits[false], 100) {
		large := 0.0
		for _, e := range part {
			large += e.t
		}
		near(t, "digits from 5 on", large, 50, 10)
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

func window(heldOut bool, begin, end int) hfopt.Window {
	w := hfopt.Window{HeldOut: heldOut}
	for i := begin; i < end; i++ {
		w.Indices = append(w.Indices, i)
	}
	return w
}

func loss(m model, theta []float64, w hfopt.Window) (sum, errors float64) {
	sum, metrics, _ := m.Loss(theta, w)
	return sum, metrics["errors"]
}

func gradient(m model, theta []float64, w hfopt.Window) []float64 {
	sum := make([]float64, numParameters)
	m.Gradient(theta, w, sum)
	return sum
}

func TestLossIsThatOfTheFormulaAlsoFarAway(t *testing.T) {
	x, theta := make([]float64, numParameters), make([]float64, numParameters)
	x[numParameters-1] = 1
	for _, c := range []struct{ z, t, loss, errors float64 }{
		{0, 0, math.Ln2, 0}, {2, 0, math.Log(1 + math.Exp(2)), 1}, {2, 1, math.Log(1+math.Exp(2)) - 2, 0},
		{-3, 1, math.Log(1+math.Exp(-3)) + 3, 1}, {1000, 0, 1000, 1}, {1000, 1, 0, 0}, {-1000, 1, 1000, 1}} {
		theta[numParameters-1] = c.z
		got, errors := loss(model{true: {{x, c.t}}}, theta, window(true, 0, 1))
		near(t, fmt.Sprintf("loss at %g of %g", c.z, c.t), got, c.loss, 1e-15)
		near(t, fmt.Sprintf("errors at %g of %g", c.z, c.t), errors, c.errors, 0)
	}
}

func TestGradientIsTheDerivativeOfTheLoss(t *testing.T) {
	m, theta, examples, h := loadDigits(folder), direction(0), window(false, 100, 130), 1e-5
	g := make([]float64, numParameters)
	if told, err := m.Gradient(theta, examples, g); err != nil {
		t.Error(err)
	} else if want, _ := loss(m, theta, examples); told != want {
		t.Errorf("the gradient has the loss %g, Loss says %g", told, want)
	}
	for seed := range 3 {
		v := direction(float64(seed + 1))
		up, _ := loss(m, along(theta, v, h), examples)
		down, _ := loss(m, along(theta, v, -h), examples)
		near(t, "derivative", (up-down)/(2*h), dot(g, v), 1e-6*math.Sqrt(dot(g, g)*dot(v, v)))
	}
}

// z is linear in theta, so that the Gauss-Newton matrix is the Hessian.
func TestProductIsTheDerivativeOfTheGradient(t *testing.T) {
	m, theta, examples, h := loadDigits(folder), direction(0), window(true, 0, 20), 1e-5
	product, err := m.Linearize(theta, examples)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range 2 {
		v, gv := direction(float64(seed+1)), make([]float64, numParameters)
		if err := product(v, gv); err != nil || dot(gv, gv) == 0 {
			t.Errorf("the product is %v, %v", gv, err)
		}
		up, down := gradient(m, along(theta, v, h), examples), gradient(m, along(theta, v, -h), examples)
		for i := range gv {
			near(t, fmt.Sprintf("element %d", i), (up[i]-down[i])/(2*h), gv[i], 1e-7*math.Sqrt(dot(gv, gv)))
		}
	}
}
