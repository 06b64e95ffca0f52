package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// A value with the types that JSON has, so that numbers of YAML compare with those of an answer.
func plain(value any) any {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	var told any
	if err := json.Unmarshal(text, &told); err != nil {
		panic(err)
	}
	return told
}

// A request with what was remembered in place of its references.
func (r *runner) resolve(value any) (any, error) {
	switch value := value.(type) {
	case map[string]any:
		if name, isReference := value["$ref"].(string); isReference {
			captured, known := r.captured[name]
			if !known {
				return nil, fmt.Errorf("%s was not captured", name)
			}
			return captured, nil
		}
		resolved := map[string]any{}
		for key, field := range value {
			field, err := r.resolve(field)
			if err != nil {
				return nil, err
			}
			resolved[key] = field
		}
		return resolved, nil
	case []any:
		resolved := []any{}
		for _, element := range value {
			element, err := r.resolve(element)
			if err != nil {
				return nil, err
			}
			resolved = append(resolved, element)
		}
		return resolved, nil
	}
	return value, nil
}

// Says where a value, nil for none, is not what the pattern says.
func (r *runner) match(path string, pattern, value any) error {
	switch pattern := pattern.(type) {
	case nil:
		return nil
	case map[string]any:
		for key := range pattern {
			if strings.HasPrefix(key, "$") {
				return r.matchOperators(path, pattern, value)
			}
		}
		fields, isObject := value.(map[string]any)
		if !isObject {
			return fmt.Errorf("%s is %v, not an object", path, value)
		}
		for key, field := range pattern {
			if err := r.match(path+"."+key, field, fields[key]); err != nil {
				return err
			}
		}
		return nil
	case []any:
		elements, isList := value.([]any)
		if !isList || len(elements) != len(pattern) {
			return fmt.Errorf("%s is %v, not a list of %d", path, value, len(pattern))
		}
		for index, element := range pattern {
			if err := r.match(fmt.Sprintf("%s[%d]", path, index), element, elements[index]); err != nil {
				return err
			}
		}
		return nil
	}
	if !reflect.DeepEqual(pattern, value) {
		return fmt.Errorf("%s is %v, not %v", path, value, pattern)
	}
	return nil
}

func (r *runner) matchOperators(path string, pattern map[string]any, value any) error {
	for operator, operand := range pattern {
		holds := true
		elements, isList := value.([]any)
		switch operator {
		case "$any":
			holds = value != nil
		case "$absent":
			holds = value == nil
		case "$capture":
			holds = value != nil
			r.captured[operand.(string)] = value
		case "$ref":
			captured, known := r.captured[operand.(string)]
			holds = known && reflect.DeepEqual(captured, value)
		case "$not":
			holds = r.match(path, operand, value) != nil
		case "$size":
			holds = isList && float64(len(elements)) == operand
		case "$contains":
			holds = false
			for _, element := range elements {
				holds = holds || r.match(path, operand, element) == nil
			}
		default:
			return fmt.Errorf("%s: no runner knows %s", path, operator)
		}
		if !holds {
			return fmt.Errorf("%s is %v, which is not %s %v", path, value, operator, operand)
		}
	}
	return nil
}
