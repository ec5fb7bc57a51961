package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	pb "hfopt/worker/hfoptv1"
)

// token is sent with every call.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}
func (token) RequireTransportSecurity() bool { return false }

func main() {
	server := flag.String("server", "127.0.0.1:7447", "`address` of the hfopt-server, HOST:PORT or unix:PATH")
	runID := flag.String("run", "digits", "id of the run to work for")
	workerID := flag.String("worker-id", "go-1", "one for each worker of a run; the same when it is started again")
	data := flag.String("data", "../models/digits", "`folder` with images.npy and labels.npy")
	ca := flag.String("ca", "", "`file` with the certificate that vouches for the server; without it, no encryption")
	flag.Parse()

	transport := insecure.NewCredentials()
	if *ca != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(*ca, ""); err != nil {
			log.Fatal(err)
		}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(transport),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}})}
	if secret := os.Getenv("HFOPT_TOKEN"); secret != "" {
		options = append(options, grpc.WithPerRPCCredentials(token(secret)))
	}
	connection, err := grpc.NewClient(*server, options...)
	if err != nil {
		log.Fatal(err)
	}
	leave, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(leave, stop) // a second signal ends the process at once

	model := loadDigits(*data)
	w := &worker{model: model, vectors: map[string][]float64{}, hello: &pb.Hello{
		ProtocolVersion: 1, WorkerId: *workerID, Incarnation: uint64(time.Now().UnixNano()), RunId: *runID,
		NumParameters: inputs * classes, TrainingExamples: uint64(len(model.training)), HeldOutExamples: uint64(len(model.heldOut)),
		ModelSignature: signature, ElementTypes: []pb.ElementType{pb.ElementType_ELEMENT_TYPE_FLOAT64},
		SecondMoment: true, SubBatches: true, InitialParameters: true}}
	end, err := w.run(leave, pb.NewEvaluationServiceClient(connection))
	if err != nil {
		log.Fatalf("refused: %v", err)
	}
	fmt.Println(end)
}
