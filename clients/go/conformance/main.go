// Plays tests/conformance/scenario.yaml in Go: on grpc-go and the stubs that buf generates from proto/.
//
// Usage: conformance SCENARIO        RESOURCE_ALLOCATOR_ENDPOINT names the service, which must have been started anew
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"gopkg.in/yaml.v3"
)

type scenario struct {
	Steps []step `yaml:"steps"`
}

type step struct {
	Name     string            `yaml:"name"`
	Call     string            `yaml:"call"`
	Stream   string            `yaml:"stream"`
	Headers  map[string]string `yaml:"headers"`
	Request  map[string]any    `yaml:"request"`
	Answer   map[string]any    `yaml:"answer"`
	Messages []any             `yaml:"messages"`
	Refused  map[string]any    `yaml:"refused"`
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: conformance SCENARIO")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var told scenario
	if err := yaml.Unmarshal(text, &told); err != nil {
		log.Fatal(err)
	}
	endpoint := strings.TrimPrefix(os.Getenv("RESOURCE_ALLOCATOR_ENDPOINT"), "http://")
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()

	runner := newRunner(connection)
	passed, failed := 0, 0
	for _, step := range told.Steps {
		if err := runner.play(step); err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", step.Name, err)
		} else {
			passed++
		}
	}
	fmt.Printf("go: %d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}
