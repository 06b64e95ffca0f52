package resourceallocator.clients;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.yaml.snakeyaml.Yaml;

/**
 * Plays tests/conformance/scenario.yaml in Java: on grpc-java and the stubs that buf generates from proto/. Takes the scenario's path;
 * RESOURCE_ALLOCATOR_ENDPOINT names the service, which must have been started anew.
 */
public final class Conformance {
    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 1) {
            throw new IllegalArgumentException("usage: Conformance SCENARIO");
        }
        Map<String, Object> scenario = new Yaml().load(Files.readString(Path.of(arguments[0])));
        String endpoint = System.getenv("RESOURCE_ALLOCATOR_ENDPOINT").replaceFirst("^http://", "");
        ManagedChannel channel = Grpc.newChannelBuilder(endpoint, InsecureChannelCredentials.create()).build();
        int passed = 0;
        int failed = 0;
        try {
            Runner runner = new Runner(channel);
            for (JsonElement step : json(scenario).getAsJsonObject().getAsJsonArray("steps")) {
                try {
                    runner.play(step.getAsJsonObject());
                    passed++;
                } catch (Exception problem) {
                    failed++;
                    System.out.printf("FAILED %s: %s%n", step.getAsJsonObject().get("name").getAsString(), problem);
                }
            }
        } finally {
            channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
        }
        System.out.printf("java: %d passed, %d failed%n", passed, failed);
        System.exit(failed > 0 || passed == 0 ? 1 : 0);
    }

    /** What YAML told, as JSON. */
    private static JsonElement json(Object told) {
        if (told instanceof Map<?, ?> map) {
            JsonObject object = new JsonObject();
            map.forEach((key, value) -> object.add(key.toString(), json(value)));
            return object;
        }
        if (told instanceof List<?> list) {
            JsonArray array = new JsonArray();
            list.forEach(element -> array.add(json(element)));
            return array;
        }
        if (told instanceof Boolean || told instanceof String || told instanceof Integer) {
            return new com.google.gson.Gson().toJsonTree(told);
        }
        throw new IllegalArgumentException("the scenario holds " + told);
    }
}
