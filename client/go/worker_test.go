package hfopt

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "hfopt/hfoptv1"
)

type stream = grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]

// server plays one script after the other to the sessions of a worker.
type server struct {
	pb.UnimplementedEvaluationServiceServer
	scripts chan func(stream) error
}

func (s *server) Session(session stream) error { return (<-s.scripts)(session) }

func quiet(options Options) Options {
	options.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	return options
}

// play returns the address of a server that plays these scripts.
func play(t *testing.T, scripts ...func(stream) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{scripts: make(chan func(stream) error, len(scripts))}
	for _, script := range scripts {
		s.scripts <- script
	}
	g := grpc.NewServer()
	pb.RegisterEvaluationServiceServer(g, s)
	go g.Serve(listener)
	t.Cleanup(g.Stop)
	return "unix:" + path
}

func run(t *testing.T, ctx context.Context, model Model, scripts ...func(stream) error) (*pb.Finished, error) {
	t.Helper()
	return Run(ctx, model, quiet(Options{Server: play(t, scripts...), RunID: "r", WorkerID: "w", Token: "secret"}))
}

// next is the next message but lease renewals.
func next(session stream) *pb.SessionRequest {
	for {
		message, err := session.Recv()
		if err != nil || message.GetLeaseRenewal() == nil {
			return message
		}
	}
}

func welcome(session stream) *pb.Hello {
	hello := next(session).GetHello()
	session.Send(&pb.SessionResponse{Message: &pb.SessionResponse_Welcome{Welcome: &pb.Welcome{
		ProtocolVersion: 1, ElementType: float64Type, Shards: 1, LeaseSeconds: 0.03}}})
	return hello
}

func header(name string, size uint64) *pb.SessionResponse {
	h := &pb.VectorHeader{Transfer: 5, Name: []byte(name), Size: size, ElementType: float64Type}
	return &pb.SessionResponse{Message: &pb.SessionResponse_VectorHeader{VectorHeader: h}}
}

func chunk(offset uint64, values ...float64) *pb.SessionResponse {
	data, _ := binary.Append(nil, binary.LittleEndian, values)
	return &pb.SessionResponse{Message: &pb.SessionResponse_VectorChunk{
		VectorChunk: &pb.VectorChunk{Transfer: 5, Offset: offset, Data: data}}}
}

func ask(id uint64, request *pb.EvaluationRequest) *pb.SessionResponse {
	request.Id = id
	return &pb.SessionResponse{Message: &pb.SessionResponse_Evaluation{Evaluation: request}}
}

func finished(session stream) error {
	return session.Send(&pb.SessionResponse{Message: &pb.SessionResponse_Finished{Finished: &pb.Finished{Reason: "CONVERGED", Detail: "so"}}})
}

func TestRunReturnsWhyTheRunHasEnded(t *testing.T) {
	var first, second *pb.Hello
	var vector []float64
	var token []string
	got, err := run(t, t.Context(), &scale{weights: []float64{1, 10, 100}},
		func(stream) error { return status.Error(codes.NotFound, "no such run yet") },
		func(session stream) error {
			given, _ := metadata.FromIncomingContext(session.Context())
			token = given.Get("authorization")
			first = welcome(session)
			session.Send(header("theta", 1))
			session.Send(chunk(0, 3))
			session.Send(ask(1, gradient("theta", 0, false, whole())))
			next(session) // the header
			vector = make([]float64, 1)
			binary.Decode(next(session).GetVectorChunk().GetData(), binary.LittleEndian, vector)
			next(session) // the answer
			return status.Error(codes.Unavailable, "the server goes away")
		},
		func(session stream) error {
			second = welcome(session)
			return finished(session)
		})
	if err != nil || got.Reason != "CONVERGED" || got.Detail != "so" {
		t.Errorf("ended with %v, %v", got, err)
	}
	if !slices.Equal(vector, []float64{330}) || !slices.Equal(token, []string{"Bearer secret"}) {
		t.Errorf("gradient %v, authorization %v", vector, token)
	}
	if first.WorkerId != "w" || first.RunId != "r" || first.TrainingExamples != 3 || first.NumParameters != 1 || len(first.HeldVectors) != 0 {
		t.Errorf("said Hello with %v", first)
	}
	if second.Incarnation != first.Incarnation || len(second.HeldVectors) != 1 || string(second.HeldVectors[0]) != "theta" {
		t.Errorf("said Hello with %v after %v", second, first)
	}
}

func TestRefusalsAndBrokenServersAreErrors(t *testing.T) {
	sends := func(messages ...*pb.SessionResponse) func(stream) error {
		return func(session stream) error {
			welcome(session)
			for _, message := range messages {
				session.Send(message)
			}
			<-session.Context().Done()
			return nil
		}
	}
	for want, script := range map[string]func(stream) error{
		"other data":                            func(stream) error { return status.Error(codes.InvalidArgument, "other data") },
		"who are you":                           func(stream) error { return status.Error(codes.Unauthenticated, "who are you") },
		"2 of ELEMENT_TYPE_FLOAT64 came":        sends(header("theta", 2)),
		"transfer 5 has no place for 8 bytes":   sends(chunk(0, 1)),
		"has no place for 16 bytes at 0":        sends(header("theta", 1), chunk(0, 1, 2)),
		"has no place for 8 bytes at 8":         sends(header("theta", 1), chunk(8, 1)),
		"has no place for 8 bytes at 4":         sends(header("theta", 1), chunk(4, 1)),
		"has no place for 8 bytes at 184467440": sends(header("theta", 1), chunk(1<<64-8, 1)),
		"has no place for 0 bytes at 0":         sends(chunk(0)),
	} {
		if _, err := run(t, t.Context(), &scale{}, script); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v instead of an error with %q", err, want)
		}
	}
}

func TestAWorkerLeavesWhenItsContextIsDone(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(stream) error
	}{
		{"nobody answers", func(session stream) error {
			<-session.Context().Done()
			return nil
		}},
		{"no such run", func(stream) error { return status.Error(codes.NotFound, "no such run yet") }},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := run(t, ctx, &scale{}, c.first); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestALeavingWorkerAnswersWhatItComputesAndNoMore(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	computing, goOn := make(chan struct{}), make(chan struct{})
	var heard []*pb.SessionRequest
	_, err := run(t, ctx, &scale{weights: []float64{1, 10, 100}, computing: computing, goOn: goOn}, func(session stream) error {
		welcome(session)
		session.Send(header("theta", 1))
		session.Send(chunk(0, 3))
		session.Send(ask(1, gradient("theta", 0, false, whole())))
		session.Send(ask(2, gradient("theta", 0, false, whole())))
		<-computing
		for range 10 {
			if message, err := session.Recv(); err != nil || message.GetLeaseRenewal() == nil {
				t.Errorf("%v, %v instead of a renewal of the lease while the model computes", message, err)
			}
		}
		leave()
		for message := next(session); message != nil; message = next(session) {
			if heard = append(heard, message); message.GetDrain() != nil {
				close(goOn)
			}
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(heard) != 4 || heard[0].GetDrain() == nil || heard[3].GetAnswer().GetRequestId() != 1 {
		t.Errorf("said %v when it left", heard)
	}
}

func TestRequestsThatAreCancelledAreNotAnswered(t *testing.T) {
	computing, goOn := make(chan struct{}), make(chan struct{})
	var answered []uint64
	w := newWorker(&scale{weights: []float64{1, 10, 100}, computing: computing, goOn: goOn}, quiet(Options{}))
	address := play(t, func(session stream) error {
		welcome(session)
		session.Send(header("theta", 1))
		session.Send(chunk(0, 3))
		session.Send(ask(1, gradient("theta", 0, false, whole())))
		session.Send(ask(1, gradient("theta", 0, false, whole()))) // again
		session.Send(ask(2, gradient("theta", 0, false, whole())))
		session.Send(ask(3, losses(&pb.Point{Base: []byte("theta")})))
		<-computing
		session.Send(&pb.SessionResponse{Message: &pb.SessionResponse_Cancel{Cancel: &pb.Cancel{RequestId: 2}}})
		session.Send(header("read", 1))
		session.Send(chunk(0, 1))
		session.Send(ask(4, losses(&pb.Point{Base: []byte("read")})))
		for { // until it has read so far
			if _, found := w.vectors.Load("read"); found {
				break
			}
			time.Sleep(time.Millisecond)
		}
		close(goOn)
		for len(answered) == 0 || answered[len(answered)-1] != 4 {
			if answer := next(session).GetAnswer(); answer != nil {
				answered = append(answered, answer.RequestId)
			}
		}
		return finished(session)
	})
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	_, err = w.serve(t.Context(), pb.NewEvaluationServiceClient(connection))
	w.running.Wait()
	if err != nil || !slices.Equal(answered, []uint64{1, 3, 4}) {
		t.Errorf("answered %v, %v", answered, err)
	}
}
