// A worker of hfopt on generated stubs: the conversation of proto/hfopt/v1/evaluation_service.proto, in the steps of client/README.md.
// Copy it and put your own model in the place of model.go to have the model trained.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "hfopt/worker/hfoptv1"
)

const (
	float64Type = pb.ElementType_ELEMENT_TYPE_FLOAT64
	chunkBytes  = 1 << 16 // a slow link has to carry one within the lease: nothing of it is heard before all of it is there
)

var (
	leave, stop = signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	data        = map[pb.DataSet][]example{}
	vectors     sync.Map // by name
	hello       = &pb.Hello{ProtocolVersion: 1, Incarnation: uint64(time.Now().UnixNano()), NumParameters: numParameters,
		ModelSignature: modelSignature, ElementTypes: []pb.ElementType{float64Type}, InitialParameters: true}
	refusals = []codes.Code{codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.PermissionDenied,
		codes.Unauthenticated, codes.Unimplemented}
)

func main() {
	server := flag.String("server", "127.0.0.1:7447", "`address` of the hfopt-server, HOST:PORT or unix:PATH")
	flag.StringVar(&hello.RunId, "run", "digits", "id of the run to work for")
	flag.StringVar(&hello.WorkerId, "worker-id", "go-1", "one for each worker of a run; the same when it is started again")
	folder := flag.String("data", "../models/digits", "`folder` with images.npy and labels.npy")
	ca := flag.String("ca", "", "`file` with the certificate that vouches for the server; without it, no encryption")
	flag.Parse()
	context.AfterFunc(leave, stop) // a second signal ends the process at once
	training, heldOut := loadDigits(*folder)
	data[pb.DataSet_DATA_SET_TRAINING], data[pb.DataSet_DATA_SET_HELD_OUT] = training, heldOut
	hello.TrainingExamples, hello.HeldOutExamples = uint64(len(training)), uint64(len(heldOut))

	transport := insecure.NewCredentials()
	if *ca != "" {
		transport = must(credentials.NewClientTLSFromFile(*ca, ""))
	}
	dialling := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 20 * time.Second}
	dialling.Backoff.MaxDelay = 2 * time.Second
	connection := must(grpc.NewClient(*server, grpc.WithTransportCredentials(transport), grpc.WithConnectParams(dialling),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, PermitWithoutStream: true})))
	for pause := 100 * time.Millisecond; leave.Err() == nil; pause = min(2*pause, 5*time.Second) {
		err := serve(pb.NewEvaluationServiceClient(connection))
		if slices.Contains(refusals, status.Code(err)) {
			log.Fatal("refused: ", err) // dialling again cannot help
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
			log.Printf("no session: %v; dialling again", err)
		case <-leave.Done():
		}
	}
}

type session struct {
	stream             pb.EvaluationService_SessionClient
	sending, answering sync.Mutex
	pending            sync.Map             // ids of requests that are still to be answered
	incoming           map[uint64]*transfer // by number
}

type transfer struct {
	name    string
	vector  []float64
	arrived []bool
	missing int
}

// serve is one session. It returns why the stream ended; when the run has ended, so does the process.
func serve(client pb.EvaluationServiceClient) error {
	ctx, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	welcomed := context.AfterFunc(leave, hangUp) // until Welcome there is nobody to take leave of
	if token := os.Getenv("HFOPT_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := client.Session(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	hello.HeldVectors = nil
	for name := range vectors.Range {
		hello.HeldVectors = append(hello.HeldVectors, []byte(name.(string)))
	}
	s := &session{stream: stream, incoming: map[uint64]*transfer{}}
	s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Hello{Hello: hello}})
	requests := make(chan *pb.EvaluationRequest, 1<<16)
	defer close(requests)
	go func() {
		for request := range requests {
			s.answer(request)
		}
	}()
	for { // reads on while the model computes and while answers are sent
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		switch m := response.Message.(type) {
		case *pb.SessionResponse_Welcome:
			welcomed()
			require(m.Welcome.ElementType == float64Type, "the run computes in %v", m.Welcome.ElementType)
			go s.renewLease(time.Duration(m.Welcome.LeaseSeconds / 3 * float64(time.Second)))
		case *pb.SessionResponse_VectorHeader:
			h := m.VectorHeader
			require(h.Size == numParameters && h.ElementType == float64Type, "%d of %v came as a vector", h.Size, h.ElementType)
			s.incoming[h.Transfer] = &transfer{string(h.Name), make([]float64, h.Size), make([]bool, h.Size), numParameters}
		case *pb.SessionResponse_VectorChunk:
			s.put(m.VectorChunk)
		case *pb.SessionResponse_Evaluation:
			if _, again := s.pending.LoadOrStore(m.Evaluation.Id, true); !again {
				requests <- m.Evaluation
			}
		case *pb.SessionResponse_Cancel:
			s.pending.Delete(m.Cancel.RequestId)
		case *pb.SessionResponse_Release:
			for _, name := range m.Release.Vectors {
				vectors.Delete(string(name))
			}
		case *pb.SessionResponse_Finished:
			fmt.Println(m.Finished.Reason, m.Finished.Detail)
			os.Exit(0)
		}
	}
}

// renewLease runs beside the computation. When it is time to leave, it says so, and hangs up after the current answer.
func (s *session) renewLease(interval time.Duration) {
	for {
		select {
		case <-time.After(interval):
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_LeaseRenewal{}})
		case <-leave.Done():
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Drain{}})
			s.answering.Lock()
			defer s.answering.Unlock()
			s.stream.CloseSend()
			return
		case <-s.stream.Context().Done():
			return
		}
	}
}

// send is for any goroutine. Recv tells why a stream is broken.
func (s *session) send(message *pb.SessionRequest) {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.stream.Send(message)
}

// put keeps a chunk's numbers, and the vector when all of them have come.
func (s *session) put(chunk *pb.VectorChunk) {
	t, first := s.incoming[chunk.Transfer], chunk.Offset/8
	for i := range uint64(len(chunk.Data) / 8) {
		k := first + i
		require(t != nil && k < numParameters && !t.arrived[k], "transfer %d has no place for number %d", chunk.Transfer, k)
		t.vector[k], t.arrived[k] = math.Float64frombits(binary.LittleEndian.Uint64(chunk.Data[8*i:])), true
		t.missing--
	}
	if t.missing == 0 {
		vectors.Store(t.name, t.vector)
		delete(s.incoming, chunk.Transfer)
	}
}

// answer computes and sends: first the vector, then the answer that names it.
func (s *session) answer(request *pb.EvaluationRequest) {
	s.answering.Lock()
	defer s.answering.Unlock()
	defer s.pending.Delete(request.Id)
	if _, wanted := s.pending.Load(request.Id); !wanted || leave.Err() != nil {
		return
	}
	begin, answer := time.Now(), &pb.Answer{RequestId: request.Id}
	vector := evaluate(request, answer)
	answer.ComputeSeconds = time.Since(begin).Seconds()
	if vector != nil {
		header := &pb.VectorHeader{Transfer: 1, Size: numParameters, ElementType: float64Type}
		s.send(&pb.SessionRequest{Message: &pb.SessionRequest_VectorHeader{VectorHeader: header}})
	}
	bytes := must(binary.Append(nil, binary.LittleEndian, vector))
	for offset := 0; offset < len(bytes); offset += chunkBytes {
		chunk := &pb.VectorChunk{Transfer: 1, Offset: uint64(offset), Data: bytes[offset:min(offset+chunkBytes, len(bytes))]}
		s.send(&pb.SessionRequest{Message: &pb.SessionRequest_VectorChunk{VectorChunk: chunk}})
	}
	s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Answer{Answer: answer}})
}

// evaluate fills in the answer and returns its vector. What the model or its arguments panic with is an answer too: Failure.
func evaluate(request *pb.EvaluationRequest, answer *pb.Answer) (vector []float64) {
	defer func() {
		if reason := recover(); reason != nil {
			failure := &pb.Failure{Code: int32(codes.Internal), Message: fmt.Sprint(reason)}
			answer.Result, vector = &pb.Answer_Failure{Failure: failure}, nil
		}
	}()
	if request.GetInitialParameters() != nil {
		answer.Result = &pb.Answer_InitialParameters{InitialParameters: &pb.InitialParametersAnswer{ParametersTransfer: 1}}
		return make([]float64, numParameters)
	}
	examples := window(data[request.Slice.DataSet], request.Slice)
	weight := float64(len(examples))
	switch r := request.Kind.(type) {
	case *pb.EvaluationRequest_Losses:
		losses, errors := &pb.LossesAnswer{Weight: weight}, &pb.MetricSums{Name: "errors"}
		for _, p := range r.Losses.Points {
			loss, wrong := loss(point(p), examples)
			losses.LossSums, errors.Sums = append(losses.LossSums, loss), append(errors.Sums, wrong)
		}
		losses.Metrics = []*pb.MetricSums{errors}
		answer.Result = &pb.Answer_Losses{Losses: losses}
	case *pb.EvaluationRequest_Gradient:
		require(!r.Gradient.SecondMoment && r.Gradient.SubBatches == 0, "this worker has no second moments and no sub-batches")
		theta := point(r.Gradient.Point)
		loss, _ := loss(theta, examples)
		vector = gradient(theta, examples)
		answer.Result = &pb.Answer_Gradient{Gradient: &pb.GradientAnswer{LossSum: loss, Weight: weight, GradientTransfer: 1}}
	case *pb.EvaluationRequest_Product:
		vector = product(point(r.Product.Point), resident(r.Product.Direction), examples)
		answer.Result = &pb.Answer_Product{Product: &pb.ProductAnswer{ProductTransfer: 1, Weight: weight}}
	default:
		panic("a kind of request that this worker does not know")
	}
	return vector
}

// point returns base + coefficient * vector + ..., term by term.
func point(p *pb.Point) []float64 {
	x := slices.Clone(resident(p.Base))
	for _, term := range p.Terms {
		add(x, term.Coefficient, resident(term.Vector))
	}
	return x
}

func resident(name []byte) []float64 {
	vector, found := vectors.Load(string(name))
	require(found, "vector %x is not here", name)
	return vector.([]float64)
}

// window is the sampling rule: the examples of a slice.
func window[T any](data []T, s *pb.Slice) []T {
	shard, shards, n := uint64(s.Shard), uint64(s.Shards), uint64(len(data))
	require(shard < shards, "there is no shard %d of %d", shard, shards)
	part := data[shard*n/shards : (shard+1)*n/shards]
	n = uint64(len(part))
	require(s.Count <= n && (s.Begin < n || s.Count == 0), "a window of %d from %d does not fit into a shard of %d", s.Count, s.Begin, n)
	return slices.Concat(part, part)[s.Begin : s.Begin+s.Count]
}

// require panics: a server that breaks the protocol ends the worker.
func require(met bool, format string, values ...any) {
	if !met {
		panic(fmt.Sprintf(format, values...))
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
