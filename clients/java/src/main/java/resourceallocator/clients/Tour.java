package resourceallocator.clients;

import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.concurrent.TimeUnit;
import resourceallocator.v1.Allocation;
import resourceallocator.v1.EnsureAllocationRequest;
import resourceallocator.v1.EnsureAllocationResponse;
import resourceallocator.v1.ModuleSpec;
import resourceallocator.v1.ReleaseAllocationRequest;
import resourceallocator.v1.ResourceAllocatorGrpc;
import resourceallocator.v1.Resources;

/** A deploy worker's first steps: place a project, repeat, read a refusal, give everything back. */
public final class Tour {
    public static void main(String[] arguments) throws Exception {
        String endpoint = System.getenv().getOrDefault("RESOURCE_ALLOCATOR_ENDPOINT", "http://127.0.0.1:50051");
        ManagedChannel channel = Grpc.newChannelBuilder(
                        endpoint.replaceFirst("^http://", ""), InsecureChannelCredentials.create())
                .defaultLoadBalancingPolicy("round_robin")
                .enableRetry()
                .build();
        try {
            var allocator = ResourceAllocatorGrpc.newBlockingStub(channel);

            var request = EnsureAllocationRequest.newBuilder()
                    .setProjectId("java-tour")
                    .addModules(ModuleSpec.newBuilder().setName("backend"))
                    .build();
            // The time runs from here, so each call names its own: on a stub that is kept it would soon be over.
            show(allocator.withDeadlineAfter(10, TimeUnit.SECONDS).ensureAllocation(request));
            // A lost answer is harmless: the same call again gives the same.
            show(allocator.withDeadlineAfter(10, TimeUnit.SECONDS).ensureAllocation(request));

            try {
                var tooBig = EnsureAllocationRequest.newBuilder()
                        .setProjectId("too-big")
                        .setResources(Resources.newBuilder().setRamMb(99_999_999))
                        .build();
                allocator.withDeadlineAfter(10, TimeUnit.SECONDS).ensureAllocation(tooBig);
            } catch (StatusRuntimeException refused) {
                ErrorInfo info = reasonOf(refused);
                System.out.printf(
                        "refused: %s, disposition %s%n", info.getReason(), info.getMetadataOrThrow("disposition"));
            }

            var release = ReleaseAllocationRequest.newBuilder().setProjectId("java-tour").build();
            var released = allocator.withDeadlineAfter(10, TimeUnit.SECONDS).releaseAllocation(release);
            for (Allocation allocation : released.getReleasedList()) {
                System.out.printf("gave back %s:%d%n", allocation.getServerAddress(), allocation.getPort());
            }
        } finally {
            channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
        }
    }

    private static void show(EnsureAllocationResponse answer) {
        System.out.println(answer.getOutcome() + " on " + answer.getPlacement().getServerHandle());
        for (Allocation allocation : answer.getAllocationsList()) {
            System.out.printf(
                    "  %s: %s:%d%n", allocation.getModule(), allocation.getServerAddress(), allocation.getPort());
        }
    }

    /** Every refusal has an ErrorInfo; its metadata says what kind of act is needed. */
    private static ErrorInfo reasonOf(StatusRuntimeException refused) throws Exception {
        for (var detail : StatusProto.fromThrowable(refused).getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                return detail.unpack(ErrorInfo.class);
            }
        }
        throw refused;
    }
}
