// A worker of hfopt on generated stubs: the conversation of proto/hfopt/v1/evaluation_service.proto, in the steps of client/README.md.
// Copy it and put your own model in the place of digits to have the model trained.
package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "hfopt/worker/hfoptv1"
)

// Small enough for a slow link to carry one within the lease: before all of it is there, nothing of it is heard.
const chunkBytes = 1 << 16

// worker is what outlives a session.
type worker struct {
	model   digits
	hello   *pb.Hello
	vectors map[string][]float64 // by name
}

type session struct {
	*worker
	stream   pb.EvaluationService_SessionClient
	sending  sync.Mutex
	incoming map[uint64]*transfer // by number
}

type transfer struct {
	name   string
	chunks []*pb.VectorChunk
	bytes  int
}

// run serves until the run has ended or leave is done. It dials again when a session breaks.
func (w *worker) run(leave context.Context, client pb.EvaluationServiceClient) (string, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		begin := time.Now()
		finished, err := w.serve(leave, client)
		if finished != nil {
			return finished.Reason + " " + finished.Detail, nil
		} else if leave.Err() != nil {
			return "left as asked", nil
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.PermissionDenied, codes.Unauthenticated,
			codes.Unimplemented:
			return "", err // dialling again cannot help
		}
		if time.Since(begin) > 5*time.Second {
			pause = 100 * time.Millisecond
		}
		log.Printf("no session: %v; dialling again", err)
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-leave.Done():
		}
	}
}

// serve is one session. It returns Finished, or why the stream ended without.
func (w *worker) serve(leave context.Context, client pb.EvaluationServiceClient) (*pb.Finished, error) {
	ctx, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	welcomed := context.AfterFunc(leave, hangUp) // until Welcome there is no need for good-byes
	stream, err := client.Session(ctx, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	s := &session{worker: w, stream: stream, incoming: map[uint64]*transfer{}}
	w.hello.HeldVectors = nil
	for name := range w.vectors {
		w.hello.HeldVectors = append(w.hello.HeldVectors, []byte(name))
	}
	s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Hello{Hello: w.hello}})

	var finished *pb.Finished
	var end error        // of the stream; to be read when inbox is closed
	var pending sync.Map // ids of requests that are still to be answered
	inbox, drained := make(chan *pb.SessionResponse, 1<<16), make(chan struct{})
	go func() { // reads on while the model computes and while answers are sent
		defer close(inbox)
		for {
			response, err := stream.Recv()
			if err != nil {
				end = err
				return
			}
			if request := response.GetEvaluation(); request != nil {
				if _, again := pending.LoadOrStore(request.Id, true); again {
					continue
				}
			} else if cancel := response.GetCancel(); cancel != nil {
				pending.Delete(cancel.RequestId)
			}
			inbox <- response
		}
	}()
	for {
		select {
		case <-drained:
			drained = nil
			stream.CloseSend()
		case response, open := <-inbox:
			if !open {
				return finished, end
			}
			var err error
			switch m := response.Message.(type) {
			case *pb.SessionResponse_Welcome:
				welcomed()
				if t := m.Welcome.ElementType; t != pb.ElementType_ELEMENT_TYPE_FLOAT64 {
					err = fmt.Errorf("the run computes in %v, this worker in float64", t)
				}
				go s.renewLease(leave, time.Duration(m.Welcome.LeaseSeconds/3*float64(time.Second)), drained)
			case *pb.SessionResponse_VectorHeader:
				if h := m.VectorHeader; h.Size != w.hello.NumParameters || h.ElementType != pb.ElementType_ELEMENT_TYPE_FLOAT64 {
					err = fmt.Errorf("a vector of %d %v instead of %d of float64", h.Size, h.ElementType, w.hello.NumParameters)
				}
				s.incoming[m.VectorHeader.Transfer] = &transfer{name: string(m.VectorHeader.Name)}
			case *pb.SessionResponse_VectorChunk:
				err = s.put(m.VectorChunk)
			case *pb.SessionResponse_Evaluation:
				if _, wanted := pending.Load(m.Evaluation.Id); wanted && leave.Err() == nil {
					s.answer(m.Evaluation)
				}
				pending.Delete(m.Evaluation.Id)
			case *pb.SessionResponse_Release:
				for _, name := range m.Release.Vectors {
					delete(w.vectors, string(name))
				}
			case *pb.SessionResponse_Finished:
				finished = m.Finished
			}
			if err != nil {
				return nil, status.Error(codes.InvalidArgument, err.Error())
			}
		}
	}
}

// renewLease runs beside the computation. When it is time to leave, it announces that and closes drained.
func (s *session) renewLease(leave context.Context, interval time.Duration, drained chan<- struct{}) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-s.stream.Context().Done():
			return
		case <-leave.Done():
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Drain{Drain: &pb.Drain{}}})
			close(drained)
			return
		case <-ticker.C:
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_LeaseRenewal{LeaseRenewal: &pb.LeaseRenewal{}}})
		}
	}
}

// send is for any goroutine. When the stream is broken, Recv tells why.
func (s *session) send(message *pb.SessionRequest) {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.stream.Send(message)
}

// put keeps a chunk, and makes a vector of all when all have come.
func (s *session) put(chunk *pb.VectorChunk) error {
	t, size := s.incoming[chunk.Transfer], 8*int(s.hello.NumParameters)
	if t == nil || len(chunk.Data) > size || chunk.Offset > uint64(size-len(chunk.Data)) {
		return fmt.Errorf("transfer %d has no place for %d bytes at %d", chunk.Transfer, len(chunk.Data), chunk.Offset)
	}
	t.chunks, t.bytes = append(t.chunks, chunk), t.bytes+len(chunk.Data)
	if t.bytes < size {
		return nil
	}
	slices.SortFunc(t.chunks, func(a, b *pb.VectorChunk) int { return cmp.Compare(a.Offset, b.Offset) })
	var data []byte
	for _, c := range t.chunks {
		if c.Offset != uint64(len(data)) {
			return fmt.Errorf("transfer %d has chunks that overlap at byte %d", c.Transfer, c.Offset)
		}
		data = append(data, c.Data...)
	}
	delete(s.incoming, chunk.Transfer)
	s.vectors[t.name] = make([]float64, s.hello.NumParameters)
	_, err := binary.Decode(data, binary.LittleEndian, s.vectors[t.name])
	return err
}

// answer computes and sends: first the vectors, then the answer that names them.
func (s *session) answer(request *pb.EvaluationRequest) {
	begin := time.Now()
	answer, vectors := s.evaluate(request)
	answer.RequestId, answer.ComputeSeconds = request.Id, time.Since(begin).Seconds()
	for i, v := range vectors { // the numbers of their transfers are free again after each answer
		data, _ := binary.Append(nil, binary.LittleEndian, v)
		s.send(&pb.SessionRequest{Message: &pb.SessionRequest_VectorHeader{VectorHeader: &pb.VectorHeader{
			Transfer: uint64(i + 1), Size: uint64(len(v)), ElementType: pb.ElementType_ELEMENT_TYPE_FLOAT64}}})
		for offset := 0; offset < len(data); offset += chunkBytes {
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_VectorChunk{VectorChunk: &pb.VectorChunk{
				Transfer: uint64(i + 1), Offset: uint64(offset), Data: data[offset:min(offset+chunkBytes, len(data))]}}})
		}
	}
	s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Answer{Answer: answer}})
}
