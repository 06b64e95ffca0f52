package resourceallocator.clients;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import java.util.HashMap;
import java.util.Map;

/** Patterns of the scenario: what they stand for is told at its head. */
final class Matcher {
    private final Map<String, JsonElement> captured = new HashMap<>();

    /** A request with what was remembered in place of its references. */
    JsonElement resolve(JsonElement value) {
        if (value.isJsonArray()) {
            JsonArray resolved = new JsonArray();
            value.getAsJsonArray().forEach(element -> resolved.add(resolve(element)));
            return resolved;
        }
        if (!value.isJsonObject()) {
            return value;
        }
        JsonObject object = value.getAsJsonObject();
        if (object.has("$ref")) {
            return remembered(object.get("$ref").getAsString());
        }
        JsonObject resolved = new JsonObject();
        object.asMap().forEach((key, field) -> resolved.add(key, resolve(field)));
        return resolved;
    }

    /** Throws where a value, null for none, is not what the pattern says. */
    void match(String path, JsonElement pattern, JsonElement value) {
        if (pattern.isJsonArray()) {
            JsonArray elements = pattern.getAsJsonArray();
            expect(isListOf(elements.size(), value), path, value, "a list of " + elements.size());
            for (int index = 0; index < elements.size(); index++) {
                match(path + "[" + index + "]", elements.get(index), value.getAsJsonArray().get(index));
            }
        } else if (!pattern.isJsonObject()) {
            expect(pattern.equals(value), path, value, pattern.toString());
        } else if (pattern.getAsJsonObject().keySet().stream().anyMatch(key -> key.startsWith("$"))) {
            pattern.getAsJsonObject().asMap().forEach((operator, operand) -> apply(path, operator, operand, value));
        } else {
            expect(value != null && value.isJsonObject(), path, value, "an object");
            pattern.getAsJsonObject().asMap().forEach(
                    (key, field) -> match(path + "." + key, field, value.getAsJsonObject().get(key)));
        }
    }

    private void apply(String path, String operator, JsonElement operand, JsonElement value) {
        String told = operator + " " + operand;
        switch (operator) {
            case "$any" -> expect(value != null, path, value, told);
            case "$absent" -> expect(value == null, path, value, told);
            case "$capture" -> {
                expect(value != null, path, value, told);
                captured.put(operand.getAsString(), value);
            }
            case "$ref" -> match(path, remembered(operand.getAsString()), value);
            case "$not" -> expect(!matches(path, operand, value), path, value, told);
            case "$size" -> expect(isListOf(operand.getAsInt(), value), path, value, told);
            case "$contains" -> {
                boolean holds = false;
                if (value != null && value.isJsonArray()) {
                    for (JsonElement element : value.getAsJsonArray()) {
                        holds |= matches(path, operand, element);
                    }
                }
                expect(holds, path, value, told);
            }
            default -> throw new Unexpected(path + ": no runner knows " + operator);
        }
    }

    private boolean matches(String path, JsonElement pattern, JsonElement value) {
        try {
            match(path, pattern, value);
            return true;
        } catch (Unexpected problem) {
            return false;
        }
    }

    private JsonElement remembered(String name) {
        JsonElement value = captured.get(name);
        if (value == null) {
            throw new Unexpected(name + " was not captured");
        }
        return value;
    }

    private static boolean isListOf(int size, JsonElement value) {
        return value != null && value.isJsonArray() && value.getAsJsonArray().size() == size;
    }

    private static void expect(boolean holds, String path, JsonElement value, String pattern) {
        if (!holds) {
            throw new Unexpected(path + " is " + value + ", not " + pattern);
        }
    }
}
