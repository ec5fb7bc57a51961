package hfopt

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "hfopt/hfoptv1"
)

const (
	float64Type = pb.ElementType_ELEMENT_TYPE_FLOAT64
	chunkBytes  = 1 << 16 // a slow link has to carry one within the lease: nothing of it is heard before all of it is there
)

// session is what belongs to one stream.
type session struct {
	*worker
	leave    context.Context // is done when the worker is to leave
	stream   pb.EvaluationService_SessionClient
	sending  sync.Mutex
	pending  sync.Map             // ids of requests that are still to be answered
	incoming map[uint64]*transfer // by number
}

type transfer struct {
	name    string
	vector  []float64
	arrived []bool
	missing int
}

// serve is one session. It returns why the run has ended, or why the stream has.
func (w *worker) serve(ctx context.Context, client pb.EvaluationServiceClient) (*pb.Finished, error) {
	open, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	welcomed := context.AfterFunc(ctx, hangUp) // until Welcome there is nobody to take leave of
	defer welcomed()
	if w.options.Token != "" {
		open = metadata.AppendToOutgoingContext(open, "authorization", "Bearer "+w.options.Token)
	}
	stream, err := client.Session(open, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	w.hello.HeldVectors = nil
	for name := range w.vectors.Range {
		w.hello.HeldVectors = append(w.hello.HeldVectors, []byte(name.(string)))
	}
	s := &session{worker: w, leave: ctx, stream: stream, incoming: map[uint64]*transfer{}}
	s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Hello{Hello: w.hello}})
	requests := make(chan *pb.EvaluationRequest, 1<<16)
	defer close(requests)
	w.running.Go(func() {
		for request := range requests {
			s.answer(request)
		}
	})
	for { // reads on while the model computes and while answers are sent
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		switch m := response.Message.(type) {
		case *pb.SessionResponse_Welcome:
			welcomed()
			if m.Welcome.ElementType != float64Type {
				return nil, status.Errorf(codes.InvalidArgument, "the run computes in %v", m.Welcome.ElementType)
			}
			w.running.Go(func() { s.renewLease(time.Duration(m.Welcome.LeaseSeconds / 3 * float64(time.Second))) })
		case *pb.SessionResponse_VectorHeader:
			h, n := m.VectorHeader, w.hello.NumParameters
			if h.Size != n || h.ElementType != float64Type {
				return nil, status.Errorf(codes.InvalidArgument, "%d of %v came as a vector", h.Size, h.ElementType)
			}
			s.incoming[h.Transfer] = &transfer{string(h.Name), make([]float64, n), make([]bool, n), int(n)}
		case *pb.SessionResponse_VectorChunk:
			if !s.put(m.VectorChunk) {
				return nil, status.Errorf(codes.InvalidArgument, "transfer %d has no place for %d bytes at %d",
					m.VectorChunk.Transfer, len(m.VectorChunk.Data), m.VectorChunk.Offset)
			}
		case *pb.SessionResponse_Evaluation:
			s.pending.Store(m.Evaluation.Id, true) // of a second copy nothing is pending when the first is answered
			requests <- m.Evaluation
		case *pb.SessionResponse_Cancel:
			s.pending.Delete(m.Cancel.RequestId)
		case *pb.SessionResponse_Release:
			for _, name := range m.Release.Vectors {
				w.vectors.Delete(string(name))
			}
		case *pb.SessionResponse_Finished:
			return m.Finished, nil
		}
	}
}

// renewLease runs beside the computation. When it is time to leave, it says so, and hangs up after the current answer.
func (s *session) renewLease(interval time.Duration) {
	for {
		select {
		case <-time.After(interval):
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_LeaseRenewal{}})
		case <-s.leave.Done():
			s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Drain{}})
			s.computing.Lock()
			defer s.computing.Unlock()
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

// put keeps a chunk's numbers, if that is their place, and the vector when all of them have come.
func (s *session) put(chunk *pb.VectorChunk) bool {
	t, first, count := s.incoming[chunk.Transfer], chunk.Offset/8, uint64(len(chunk.Data)/8)
	if t == nil || (chunk.Offset|uint64(len(chunk.Data)))%8 != 0 || first+count > uint64(len(t.vector)) {
		return false
	}
	for k := first; k < first+count; k++ {
		if t.arrived[k] {
			return false
		}
		t.arrived[k] = true
	}
	binary.Decode(chunk.Data, binary.LittleEndian, t.vector[first:first+count])
	if t.missing -= int(count); t.missing == 0 {
		s.vectors.Store(t.name, t.vector)
		delete(s.incoming, chunk.Transfer)
	}
	return true
}

// answer computes and sends: first the vector, then the answer that names it.
func (s *session) answer(request *pb.EvaluationRequest) {
	s.computing.Lock()
	defer s.computing.Unlock()
	defer s.pending.Delete(request.Id)
	if _, wanted := s.pending.Load(request.Id); !wanted || s.leave.Err() != nil || s.stream.Context().Err() != nil {
		return
	}
	answer, vector := s.evaluate(request)
	if vector != nil {
		header := &pb.VectorHeader{Transfer: 1, Size: s.hello.NumParameters, ElementType: float64Type}
		s.send(&pb.SessionRequest{Message: &pb.SessionRequest_VectorHeader{VectorHeader: header}})
	}
	bytes, _ := binary.Append(nil, binary.LittleEndian, vector)
	for offset := 0; offset < len(bytes); offset += chunkBytes {
		chunk := &pb.VectorChunk{Transfer: 1, Offset: uint64(offset), Data: bytes[offset:min(offset+chunkBytes, len(bytes))]}
		s.send(&pb.SessionRequest{Message: &pb.SessionRequest_VectorChunk{VectorChunk: chunk}})
	}
	s.send(&pb.SessionRequest{Message: &pb.SessionRequest_Answer{Answer: answer}})
}
