// A worker of hfopt that trains a logistic regression on handwritten digits; model.go is the part to replace.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/credentials"

	"hfopt"
)

func main() {
	options := hfopt.Options{Token: os.Getenv("HFOPT_TOKEN")}
	flag.StringVar(&options.Server, "server", "127.0.0.1:7447", "`address` of the hfopt-server, HOST:PORT or unix:PATH")
	flag.StringVar(&options.RunID, "run", "digits", "id of the run to work for")
	flag.StringVar(&options.WorkerID, "worker-id", "go-1", "one for each worker of a run; the same when it is started again")
	folder := flag.String("data", "../models/digits", "`folder` with images.npy and labels.npy")
	ca := flag.String("ca", "", "`file` with the certificate that vouches for the server; without it, no encryption")
	flag.Parse()
	if *ca != "" {
		options.Credentials = must(credentials.NewClientTLSFromFile(*ca, ""))
	}
	leave, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(leave, stop) // a second signal ends the process at once
	finished, err := hfopt.Run(leave, loadDigits(*folder), options)
	if errors.Is(err, context.Canceled) {
		return // it has taken its leave
	}
	fmt.Println(must(finished, err).Reason, finished.Detail)
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
