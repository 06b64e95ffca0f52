// A deploy worker's first steps: place a project, repeat, read a refusal, give everything back.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "resourceallocator.example/clients/gen/resourceallocator/v1"
)

// What a retry may repeat is safe: a call that was carried out answers the same again, at whichever replica.
const serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{
	"name": [{"service": "resourceallocator.v1.ResourceAllocator"}],
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

func main() {
	endpoint := os.Getenv("RESOURCE_ALLOCATOR_ENDPOINT")
	if endpoint == "" {
		endpoint = "http://127.0.0.1:50051"
	}
	connection, err := grpc.NewClient(strings.TrimPrefix(endpoint, "http://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	allocator := pb.NewResourceAllocatorClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	request := &pb.EnsureAllocationRequest{ProjectId: "go-tour", Modules: []*pb.ModuleSpec{{Name: "backend"}}}
	show(allocator.EnsureAllocation(ctx, request))
	// A lost answer is harmless: the same call again gives the same.
	show(allocator.EnsureAllocation(ctx, request))

	tooBig := &pb.EnsureAllocationRequest{
		ProjectId: "too-big", Resources: &pb.Resources{RamMb: proto.Uint64(99_999_999)},
	}
	if _, err := allocator.EnsureAllocation(ctx, tooBig); err != nil {
		info := reasonOf(err)
		fmt.Printf("refused: %s, disposition %s\n", info.GetReason(), info.GetMetadata()["disposition"])
	}

	released, err := allocator.ReleaseAllocation(ctx, &pb.ReleaseAllocationRequest{ProjectId: "go-tour"})
	if err != nil {
		log.Fatal(err)
	}
	for _, allocation := range released.GetReleased() {
		fmt.Printf("gave back %s:%d\n", allocation.GetServerAddress(), allocation.GetPort())
	}
}

func show(answer *pb.EnsureAllocationResponse, err error) {
	if err != nil {
		log.Fatalf("%s: %v", reasonOf(err).GetReason(), err)
	}
	fmt.Println(answer.GetOutcome(), "on", answer.GetPlacement().GetServerHandle())
	for _, allocation := range answer.GetAllocations() {
		fmt.Printf("  %s: %s:%d\n", allocation.GetModule(), allocation.GetServerAddress(), allocation.GetPort())
	}
}

// Every refusal has an ErrorInfo; its metadata says what kind of act is needed.
func reasonOf(err error) *errdetails.ErrorInfo {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}
