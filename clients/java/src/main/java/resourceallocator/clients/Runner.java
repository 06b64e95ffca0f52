package resourceallocator.clients;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.Message;
import com.google.protobuf.MessageOrBuilder;
import com.google.protobuf.TypeRegistry;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServiceDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import resourceallocator.v1.ResourceAllocatorGrpc;
import resourceallocator.v1.ServerInventoryGrpc;

/** The steps of a scenario, played: calls by generated stubs, and what comes compared with what is expected. */
final class Runner {
    private static final int DEADLINE_S = 30;
    private static final List<ServiceDescriptor> SERVICES = List.of(
            HealthGrpc.getServiceDescriptor(),
            ResourceAllocatorGrpc.getServiceDescriptor(),
            ServerInventoryGrpc.getServiceDescriptor());

    /** A status that is part of an answer has its details packed. */
    private static final JsonFormat.Printer PRINTER = JsonFormat.printer().usingTypeRegistry(TypeRegistry.newBuilder()
            .add(List.of(BadRequest.getDescriptor(), ErrorInfo.getDescriptor(), RetryInfo.getDescriptor()))
            .build());

    private final Channel channel;
    private final Map<String, MethodDescriptor<Message, Message>> methods = new HashMap<>();
    private final Matcher matcher = new Matcher();

    @SuppressWarnings("unchecked")
    Runner(Channel channel) {
        this.channel = channel;
        for (ServiceDescriptor service : SERVICES) {
            for (MethodDescriptor<?, ?> method : service.getMethods()) {
                methods.put(method.getFullMethodName(), (MethodDescriptor<Message, Message>) method);
            }
        }
    }

    void play(JsonObject step) throws Exception {
        boolean streams = step.has("stream");
        String path = step.get(streams ? "stream" : "call").getAsString();
        MethodDescriptor<Message, Message> method = methods.get(path);
        if (method == null) {
            throw new IllegalArgumentException("there is no stub of " + path);
        }
        Message request = request(method, step.has("request") ? step.get("request") : new JsonObject());
        Channel sending = ClientInterceptors.intercept(
                channel, MetadataUtils.newAttachHeadersInterceptor(headers(step.getAsJsonObject("headers"))));
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(DEADLINE_S, TimeUnit.SECONDS);
        try {
            if (streams) {
                JsonArray patterns = step.has("messages") ? step.getAsJsonArray("messages") : new JsonArray();
                read(ClientCalls.blockingServerStreamingCall(sending, method, options, request), patterns);
            } else {
                Message answer = ClientCalls.blockingUnaryCall(sending, method, options, request);
                matcher.match("answer", step.has("answer") ? step.get("answer") : new JsonObject(), json(answer));
            }
        } catch (StatusRuntimeException refused) {
            if (!step.has("refused")) {
                throw refused;
            }
            JsonObject pattern = step.getAsJsonObject("refused").deepCopy();
            if (pattern.has("reason")) {
                pattern.addProperty("domain", "resourceallocator");
            }
            matcher.match("refused", pattern, refusal(refused));
            return;
        }
        if (step.has("refused")) {
            throw new Unexpected("it was not refused");
        }
    }

    private Message request(MethodDescriptor<Message, Message> method, JsonElement told) throws Exception {
        var marshaller = (MethodDescriptor.PrototypeMarshaller<Message>) method.getRequestMarshaller();
        Message.Builder request = marshaller.getMessagePrototype().newBuilderForType();
        JsonFormat.parser().merge(matcher.resolve(told).toString(), request);
        return request.build();
    }

    private static Metadata headers(JsonObject told) {
        Metadata headers = new Metadata();
        if (told != null) {
            told.asMap().forEach((name, value) -> headers.put(
                    Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value.getAsString()));
        }
        return headers;
    }

    /** Each pattern is for the next message, bookmarks left out where the pattern has none. What is not read is cancelled at the end. */
    private void read(Iterator<Message> messages, JsonArray patterns) throws Exception {
        if (patterns.isEmpty()) {
            messages.next();
        }
        for (int next = 0; next < patterns.size(); next++) {
            JsonObject pattern = patterns.get(next).getAsJsonObject();
            JsonObject told = json(messages.next());
            while (told.has("bookmark") && !pattern.has("bookmark")) {
                told = json(messages.next());
            }
            matcher.match("messages[" + next + "]", pattern, told);
        }
    }

    private static JsonObject json(MessageOrBuilder message) throws Exception {
        return JsonParser.parseString(PRINTER.print(message)).getAsJsonObject();
    }

    /** A refusal as the scenario tells it. */
    private static JsonObject refusal(StatusRuntimeException refused) throws Exception {
        JsonObject told = new JsonObject();
        told.addProperty("code", refused.getStatus().getCode().name());
        told.addProperty("retry", false);
        for (var detail : StatusProto.fromThrowable(refused).getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                ErrorInfo info = detail.unpack(ErrorInfo.class);
                JsonObject metadata = new JsonObject();
                info.getMetadataMap().forEach(metadata::addProperty);
                told.addProperty("reason", info.getReason());
                told.addProperty("domain", info.getDomain());
                told.add("metadata", metadata);
            } else if (detail.is(BadRequest.class)) {
                JsonArray fields = new JsonArray();
                detail.unpack(BadRequest.class).getFieldViolationsList().forEach(bad -> fields.add(bad.getField()));
                told.add("fields", fields);
            } else if (detail.is(RetryInfo.class)) {
                told.addProperty("retry", true);
            }
        }
        return told;
    }
}
