// Patterns of the scenario: what they stand for is told at its head.

import type { JsonObject, JsonValue } from "@bufbuild/protobuf";

/** A value, or none. */
type Value = JsonValue | undefined;

export class Matcher {
  private readonly captured = new Map<string, JsonValue>();

  /** A request with what was remembered in place of its references. */
  resolve(value: JsonValue): JsonValue {
    if (Array.isArray(value)) {
      return value.map((element) => this.resolve(element));
    }
    if (!isObject(value)) {
      return value;
    }
    if ("$ref" in value) {
      return this.remembered(value["$ref"] as string);
    }
    return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, this.resolve(field)]));
  }

  /** Throws where a value is not what the pattern says. */
  match(path: string, pattern: JsonValue, value: Value): void {
    if (Array.isArray(pattern)) {
      expect(Array.isArray(value) && value.length === pattern.length, path, value, `a list of ${pattern.length}`);
      pattern.forEach((element, index) => this.match(`${path}[${index}]`, element, (value as JsonValue[])[index]));
    } else if (!isObject(pattern)) {
      expect(value === pattern, path, value, JSON.stringify(pattern));
    } else if (Object.keys(pattern).some((key) => key.startsWith("$"))) {
      for (const [operator, operand] of Object.entries(pattern)) {
        this.apply(path, operator, operand, value);
      }
    } else {
      expect(isObject(value), path, value, "an object");
      for (const [key, field] of Object.entries(pattern)) {
        this.match(`${path}.${key}`, field, (value as JsonObject)[key]);
      }
    }
  }

  private apply(path: string, operator: string, operand: JsonValue, value: Value): void {
    const told = `${operator} ${JSON.stringify(operand)}`;
    switch (operator) {
      case "$any":
        return expect(value !== undefined, path, value, told);
      case "$absent":
        return expect(value === undefined, path, value, told);
      case "$capture":
        expect(value !== undefined, path, value, told);
        this.captured.set(operand as string, value as JsonValue);
        return;
      case "$ref":
        return this.match(path, this.remembered(operand as string), value);
      case "$not":
        return expect(!this.matches(path, operand, value), path, value, told);
      case "$size":
        return expect(Array.isArray(value) && value.length === operand, path, value, told);
      case "$contains":
        return expect(
          Array.isArray(value) && value.some((element) => this.matches(path, operand, element)), path, value, told,
        );
      default:
        throw new Error(`${path}: no runner knows ${operator}`);
    }
  }

  private matches(path: string, pattern: JsonValue, value: Value): boolean {
    try {
      this.match(path, pattern, value);
      return true;
    } catch {
      return false;
    }
  }

  private remembered(name: string): JsonValue {
    const value = this.captured.get(name);
    if (value === undefined) {
      throw new Error(`${name} was not captured`);
    }
    return value;
  }
}

function isObject(value: Value): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function expect(holds: boolean, path: string, value: Value, pattern: string): void {
  if (!holds) {
    throw new Error(`${path} is ${JSON.stringify(value)}, not ${pattern}`);
  }
}
