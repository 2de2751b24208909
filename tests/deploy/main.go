// Command deploy tests what deploy/ has for other platforms: the chart and its manifests on a real API server of Kubernetes, the
// job for Nomad, and the container image on a real engine. `make deploy-test` builds what it needs.
//
//	deploy [kubernetes] [nomad] [image]   these parts; without arguments, all
//	deploy manifests                      renders deploy/kubernetes/manifests anew
package main

import (
	"fmt"
	"os"
	"slices"
)

// A check of one part: a sentence that holds, and the function that fails if it does not.
type check struct {
	sentence string
	holds    func(*world) error
}

var parts = map[string][]check{
	"kubernetes": slices.Concat(chartChecks, clusterChecks),
	"nomad":      nomadChecks,
	"image":      imageChecks,
}

func main() {
	chosen := os.Args[1:]
	if len(chosen) == 0 {
		chosen = []string{"kubernetes", "nomad", "image"}
	}
	w, err := newWorld()
	if err == nil {
		err = run(w, chosen)
		w.end()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "deploy: %v\n", err)
		os.Exit(1)
	}
}

func run(w *world, chosen []string) error {
	if slices.Equal(chosen, []string{"manifests"}) {
		return writeManifests(w)
	}
	for _, part := range chosen {
		checks, known := parts[part]
		if !known {
			return fmt.Errorf("there is no part %q: kubernetes, nomad, image, or manifests", part)
		}
		for _, check := range checks {
			if err := check.holds(w); err != nil {
				return fmt.Errorf("%s: not so that %s: %w", part, check.sentence, err)
			}
			fmt.Printf("ok  %s: %s\n", part, check.sentence)
		}
	}
	return nil
}
