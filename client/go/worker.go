// Package hfopt has a model trained by an hfopt-server: Run works for a run of element type float64 with what implements Model.
package hfopt

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "hfopt/hfoptv1"
)

// Options say where to work, and as whom.
type Options struct {
	Server      string                           // HOST:PORT or unix:PATH
	RunID       string                           // a run that is there or will be
	WorkerID    string                           // one for each worker of a run, the same when it is started again: 1 to 63 of [a-z0-9-]
	Credentials credentials.TransportCredentials // TLS; nil: no encryption
	Token       string                           // sent as authorization: Bearer ...; empty: none
	Log         *slog.Logger                     // told of lost sessions and of failures; nil: slog.Default()
}

// refusals are for what dialling again cannot help.
var refusals = []codes.Code{codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.PermissionDenied,
	codes.Unauthenticated, codes.Unimplemented}

// Run works for a run until that has ended, and returns why it has. While there is no server, or no such run, it dials again.
//
// When ctx is done, the worker leaves: the request that is being computed is answered, others are left to other workers, and the error is
// that of ctx. All other errors are statuses of gRPC: refusals, which say what is wrong, and INVALID_ARGUMENT where a server breaks the
// protocol. Run waits for the model if it is computing.
func Run(ctx context.Context, model Model, options Options) (*pb.Finished, error) {
	if options.Credentials == nil {
		options.Credentials = insecure.NewCredentials()
	}
	if options.Log == nil {
		options.Log = slog.Default()
	}
	dialling := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 20 * time.Second}
	dialling.Backoff.MaxDelay = 2 * time.Second
	pings := keepalive.ClientParameters{Time: 30 * time.Second, PermitWithoutStream: true}
	connection, err := grpc.NewClient(options.Server, grpc.WithTransportCredentials(options.Credentials),
		grpc.WithConnectParams(dialling), grpc.WithKeepaliveParams(pings))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	w := newWorker(model, options)
	defer w.running.Wait()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		finished, err := w.serve(ctx, pb.NewEvaluationServiceClient(connection))
		if err == nil || slices.Contains(refusals, status.Code(err)) {
			return finished, err
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
			options.Log.Warn("no session; dialling again", "reason", err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// worker is what outlives a session.
type worker struct {
	model          Model
	options        Options
	hello          *pb.Hello
	vectors        sync.Map       // by name
	running        sync.WaitGroup // goroutines of all sessions
	computing      sync.Mutex
	linearizations map[uint32]linearization // by shard; guarded by computing
}

func newWorker(model Model, options Options) *worker {
	hello := &pb.Hello{ProtocolVersion: 1, WorkerId: options.WorkerID, RunId: options.RunID, Incarnation: uint64(time.Now().UnixNano()),
		NumParameters: uint64(model.NumParameters()), ModelSignature: model.Signature(), InitialParameters: true,
		TrainingExamples: uint64(model.NumExamples(false)), HeldOutExamples: uint64(model.NumExamples(true)),
		ElementTypes: []pb.ElementType{float64Type}}
	return &worker{model: model, options: options, hello: hello, linearizations: map[uint32]linearization{}}
}
