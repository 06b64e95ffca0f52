package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "resourceallocator.example/clients/gen/resourceallocator/v1"
)

const deadline = 30 * time.Second

// A method takes its request as JSON and gives what it answers, message by message, to a function that returns false
// where it has read enough.
type method func(ctx context.Context, request []byte, read func(proto.Message) bool) error

type runner struct {
	methods  map[string]method
	captured map[string]any
}

func newRunner(connection *grpc.ClientConn) *runner {
	const allocator, inventory = "resourceallocator.v1.ResourceAllocator/", "resourceallocator.v1.ServerInventory/"
	a, i := pb.NewResourceAllocatorClient(connection), pb.NewServerInventoryClient(connection)
	h := health.NewHealthClient(connection)
	return &runner{captured: map[string]any{}, methods: map[string]method{
		"grpc.health.v1.Health/Check":        unary[health.HealthCheckRequest](h.Check),
		"grpc.health.v1.Health/Watch":        stream[health.HealthCheckRequest](h.Watch),
		allocator + "EnsureAllocation":       unary[pb.EnsureAllocationRequest](a.EnsureAllocation),
		allocator + "BatchEnsureAllocations": unary[pb.BatchEnsureAllocationsRequest](a.BatchEnsureAllocations),
		allocator + "ReleaseAllocation":      unary[pb.ReleaseAllocationRequest](a.ReleaseAllocation),
		allocator + "ListAllocations":        unary[pb.ListAllocationsRequest](a.ListAllocations),
		allocator + "GetPlacement":           unary[pb.GetPlacementRequest](a.GetPlacement),
		allocator + "FindServer":             unary[pb.FindServerRequest](a.FindServer),
		allocator + "ListWaiting":            unary[pb.ListWaitingRequest](a.ListWaiting),
		allocator + "RelocateProject":        unary[pb.RelocateProjectRequest](a.RelocateProject),
		allocator + "ReportPortInUse":        unary[pb.ReportPortInUseRequest](a.ReportPortInUse),
		allocator + "WatchAllocations":       stream[pb.WatchAllocationsRequest](a.WatchAllocations),
		inventory + "RegisterServer":         unary[pb.RegisterServerRequest](i.RegisterServer),
		inventory + "GetServer":              unary[pb.GetServerRequest](i.GetServer),
		inventory + "ListServers":            unary[pb.ListServersRequest](i.ListServers),
		inventory + "UpdateServer":           unary[pb.UpdateServerRequest](i.UpdateServer),
		inventory + "DeleteServer":           unary[pb.DeleteServerRequest](i.DeleteServer),
		inventory + "ReportUsage":            unary[pb.ReportUsageRequest](i.ReportUsage),
		inventory + "SyncServers":            unary[pb.SyncServersRequest](i.SyncServers),
		inventory + "DrainServer":            unary[pb.DrainServerRequest](i.DrainServer),
		inventory + "GetFleetPolicy":         unary[pb.GetFleetPolicyRequest](i.GetFleetPolicy),
		inventory + "UpdateFleetPolicy":      unary[pb.UpdateFleetPolicyRequest](i.UpdateFleetPolicy),
	}}
}

// A pointer to a message of type M.
type pointer[M any] interface {
	*M
	proto.Message
}

func unary[Q any, PQ pointer[Q], A proto.Message](call func(context.Context, PQ, ...grpc.CallOption) (A, error)) method {
	return func(ctx context.Context, request []byte, read func(proto.Message) bool) error {
		message := PQ(new(Q))
		if err := protojson.Unmarshal(request, message); err != nil {
			return err
		}
		answer, err := call(ctx, message)
		if err != nil {
			return err
		}
		read(answer)
		return nil
	}
}

func stream[Q any, PQ pointer[Q], A any, PA pointer[A]](
	call func(context.Context, PQ, ...grpc.CallOption) (grpc.ServerStreamingClient[A], error),
) method {
	return func(ctx context.Context, request []byte, read func(proto.Message) bool) error {
		message := PQ(new(Q))
		if err := protojson.Unmarshal(request, message); err != nil {
			return err
		}
		messages, err := call(ctx, message)
		if err != nil {
			return err
		}
		for {
			answer, err := messages.Recv()
			if err != nil {
				return err
			}
			if !read(PA(answer)) {
				return nil
			}
		}
	}
}

func (r *runner) play(step step) error {
	path := step.Call + step.Stream
	method, known := r.methods[path]
	if !known {
		return fmt.Errorf("there is no stub of %s", path)
	}
	resolved, err := r.resolve(step.Request)
	if err != nil {
		return err
	}
	request, err := json.Marshal(resolved)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(step.Headers))

	patterns := []any{step.Answer}
	if step.Stream != "" {
		patterns = step.Messages
	}
	var unexpected error
	next := 0
	err = method(ctx, request, func(message proto.Message) bool {
		told := asJSON(message)
		if next >= len(patterns) {
			unexpected = errors.New("it was not refused")
			return false
		}
		pattern, _ := patterns[next].(map[string]any)
		// Bookmarks are left out where the pattern has none.
		if told["bookmark"] != nil && pattern["bookmark"] == nil && step.Stream != "" {
			return true
		}
		unexpected = r.match(fmt.Sprintf("message %d", next), plain(patterns[next]), told)
		next++
		return unexpected == nil && next < len(patterns)
	})
	switch {
	case unexpected != nil:
		return unexpected
	case step.Refused != nil && err == nil:
		return errors.New("it was not refused")
	case step.Refused != nil:
		if step.Refused["reason"] != nil {
			step.Refused["domain"] = "resourceallocator"
		}
		return r.match("refused", plain(step.Refused), refusal(err))
	case err != nil:
		return fmt.Errorf("refused: %w", err)
	}
	return nil
}

func asJSON(message proto.Message) map[string]any {
	text, err := protojson.Marshal(message)
	if err != nil {
		panic(err)
	}
	told := map[string]any{}
	if err := json.Unmarshal(text, &told); err != nil {
		panic(err)
	}
	return told
}

// The names of the codes as google.rpc.Code has them.
var codeNames = map[codes.Code]string{
	codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

// A refusal as the scenario tells it.
func refusal(err error) any {
	refused := status.Convert(err)
	told := map[string]any{"code": codeNames[refused.Code()], "retry": false, "message": refused.Message()}
	for _, detail := range refused.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			told["reason"], told["domain"], told["metadata"] = detail.GetReason(), detail.GetDomain(), detail.GetMetadata()
		case *errdetails.BadRequest:
			fields := []string{}
			for _, violation := range detail.GetFieldViolations() {
				fields = append(fields, violation.GetField())
			}
			told["fields"] = fields
		case *errdetails.RetryInfo:
			told["retry"] = true
		}
	}
	return plain(told)
}
