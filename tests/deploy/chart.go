// The chart without a cluster: what it renders, what it refuses, and whether the host accepts the configuration.

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// Workloads that are rendered to deploy/kubernetes/manifests, each from a file of values.
var workloads = []string{"deployment", "daemonset"}

// The oldest release of Kubernetes that the chart permits, and the release of the API server here.
var releases = []string{"1.30", "1.37"}

// Room in the grace period of a pod beyond the times of a drain (docs/draining.md).
const keysAndLeases = 11 * time.Second

var chartChecks = []check{
	{"helm finds no mistake in the chart", lints},
	{"the manifests are rendered from the present chart", isRendered},
	{"wrong values are refused, and the error names them", refusesValues},
	{"the grace period is longer than a drain", gracePeriodSuffices},
	{"leasehold accepts the configuration, and a pod has the memory for it", configurationIsAccepted},
	{"the manifests fit the schemas of the oldest and the newest Kubernetes", fitsSchemas},
	{"the ServiceMonitor is of the Prometheus operator's type", serviceMonitorFits},
}

// document is one object of Kubernetes.
type document map[string]any

func (d document) kind() string { return fmt.Sprint(d["kind"]) }

// at is what stands under these keys and indices; nil where there is nothing.
func (d document) at(keys ...any) any {
	var found any = map[string]any(d)
	for _, key := range keys {
		switch key := key.(type) {
		case string:
			inner, _ := found.(map[string]any)
			found = inner[key]
		case int:
			list, _ := found.([]any)
			if key >= len(list) {
				return nil
			}
			found = list[key]
		}
	}
	return found
}

func (d document) isWorkload() bool { return d.kind() == "Deployment" || d.kind() == "DaemonSet" }

// documents are the objects of a file of manifests.
func documents(manifests string) ([]document, error) {
	var all []document
	for _, part := range regexp.MustCompile(`(?m)^---$`).Split(manifests, -1) {
		var one document
		if err := yaml.UnmarshalStrict([]byte(part), &one); err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, part)
		}
		if len(one) > 0 {
			all = append(all, one)
		}
	}
	return all, nil
}

// find is the only object of one of these kinds.
func find(all []document, kinds ...string) (document, error) {
	found := slices.DeleteFunc(slices.Clone(all), func(one document) bool { return !slices.Contains(kinds, one.kind()) })
	if len(found) != 1 {
		return nil, fmt.Errorf("%d objects are %v", len(found), kinds)
	}
	return found[0], nil
}

// render is what helm makes of the chart with these values.
func render(w *world, arguments ...string) (string, error) {
	chart := w.path("deploy/kubernetes/chart")
	return output(w.built("helm"), append([]string{"template", "leasehold", chart, "--namespace", namespace, "--kube-version", releases[1]}, arguments...)...)
}

// manifests are the contents of the file of a workload.
func manifests(w *world, workload string) (string, error) {
	rendered, err := render(w, "--values", w.path("deploy/kubernetes/values", workload+".yaml"))
	if err != nil {
		return "", err
	}
	digest, err := sourcesDigest(w, workload)
	if err != nil {
		return "", err
	}
	head := fmt.Sprintf("# Rendered by `make manifests` from the chart, with values/%s.yaml. Change those.\n# sha256 of both: %s\n", workload, digest)
	return head + rendered, nil
}

// sourcesDigest is over the files that a file of manifests is made from, each with its path; a test without helm compares it.
func sourcesDigest(w *world, workload string) (string, error) {
	files := []string{w.path("deploy/kubernetes/values", workload+".yaml")}
	err := filepath.WalkDir(w.path("deploy/kubernetes/chart"), func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	digest := sha256.New()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(digest, "%s\n%s\n", strings.TrimPrefix(file, w.root+"/"), text)
	}
	return fmt.Sprintf("%x", digest.Sum(nil)), nil
}

func manifestFile(w *world, workload string) string {
	return w.path("deploy/kubernetes/manifests", workload+".yaml")
}

func writeManifests(w *world) error {
	for _, workload := range workloads {
		text, err := manifests(w, workload)
		if err != nil {
			return err
		}
		if err := os.WriteFile(manifestFile(w, workload), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readManifests are the committed objects of a workload.
func readManifests(w *world, workload string) ([]document, error) {
	text, err := os.ReadFile(manifestFile(w, workload))
	if err != nil {
		return nil, err
	}
	return documents(string(text))
}

func lints(w *world) error {
	for _, workload := range workloads {
		values := w.path("deploy/kubernetes/values", workload+".yaml")
		_, err := output(w.built("helm"), "lint", "--strict", "--kube-version", releases[1], "--values", values, w.path("deploy/kubernetes/chart"))
		if err != nil {
			return err
		}
	}
	return nil
}

func isRendered(w *world) error {
	for _, workload := range workloads {
		want, err := manifests(w, workload)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(manifestFile(w, workload))
		if err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("%s: run `make manifests`", manifestFile(w, workload))
		}
	}
	return nil
}

func refusesValues(w *world) error {
	for values, word := range map[string]string{
		"kind: StatefulSet":                                                                    "kind",
		"drain: { settel: 5 }":                                                                 "settel",
		"drain: { settle: 5s }":                                                                "settle",
		"etcd: { endpoints: [] }":                                                              "endpoints",
		"etcd: { endpoints: [http://etcd] }":                                                   "endpoints",
		"{ kind: DaemonSet, autoscaling: { enabled: true } }":                                  "autoscaling",
		"services: [{ name: a, component: /a.wasm }]":                                          "port",
		"services: [{ name: a, component: a.wasm, port: 8080 }]":                               "component",
		"services: [{ name: a, component: /a.wasm, port: 80 }]":                                "services/0/port",
		"services: [{ name: a, component: /a.wasm, port: 8080, listen: x }]":                   "listen",
		"services: [{ name: a, component: /a.wasm, port: 8080, limits: { settle_time: 1s } }]": "settle_time",
		"configuration: { etcd: {} }":                                                          "configuration.etcd",
		"secrets: [etcd-tls]\netcd: { endpoints: ['https://a:1'], tlsSecret: b }":              "etcd-tls",
	} {
		file, err := w.write("values.yaml", values)
		if err != nil {
			return err
		}
		_, err = render(w, "--values", file)
		if err := refused(err, word); err != nil {
			return fmt.Errorf("%s: %w", values, err)
		}
	}
	return nil
}

// configuration is the configuration of the host in the ConfigMap.
func configuration(all []document) (string, error) {
	found, err := find(all, "ConfigMap")
	if err != nil {
		return "", err
	}
	text, _ := found.at("data", "services.yaml").(string)
	if text == "" {
		return "", errors.New("the ConfigMap has no services.yaml")
	}
	return text, nil
}

func gracePeriodSuffices(w *world) error {
	for _, workload := range workloads {
		all, err := readManifests(w, workload)
		if err != nil {
			return err
		}
		text, err := configuration(all)
		if err != nil {
			return err
		}
		drain, err := drainTime(text)
		if err != nil {
			return err
		}
		found, err := find(all, "Deployment", "DaemonSet")
		if err != nil {
			return err
		}
		pod := []any{"spec", "template", "spec"}
		if preStop, ok := found.at(append(pod, "containers", 0, "lifecycle", "preStop", "sleep", "seconds")...).(float64); ok {
			drain += time.Duration(preStop) * time.Second
		} else if workload == "deployment" {
			return errors.New("a Deployment with a Service has no preStop")
		}
		grace, _ := found.at(append(pod, "terminationGracePeriodSeconds")...).(float64)
		if time.Duration(grace)*time.Second <= drain {
			return fmt.Errorf("%s: %v s for a drain of %v", workload, grace, drain)
		}
	}
	return nil
}

// drainTime is the longest time that a host with this configuration needs for its end.
func drainTime(configuration string) (time.Duration, error) {
	var file struct {
		Defaults struct{ Limits map[string]string }
	}
	if err := yaml.Unmarshal([]byte(configuration), &file); err != nil {
		return 0, err
	}
	drain := keysAndLeases
	for _, key := range []string{"settle_time", "drain_timeout", "stop_timeout"} {
		span, err := time.ParseDuration(file.Defaults.Limits[key])
		if err != nil {
			return 0, fmt.Errorf("defaults.limits.%s: %w", key, err)
		}
		drain += span
	}
	return drain, nil
}

func configurationIsAccepted(w *world) error {
	for _, values := range []string{
		"{}",
		"ipFamily: IPv6",
		"configuration: { traces: { endpoint: http://collector:4317 } }\nregistry: { layout: [seed, kratos], ttl: 15s }",
		"services: [{ name: a, component: /components/greeter.wasm, port: 8080, register: host, metadata: { node: '${NODE_NAME}' } }]",
	} {
		file, err := w.write("values.yaml", values)
		if err != nil {
			return err
		}
		rendered, err := render(w, "--values", file)
		if err != nil {
			return err
		}
		all, err := documents(rendered)
		if err != nil {
			return err
		}
		text, err := configuration(all)
		if err != nil {
			return err
		}
		address := "10.0.0.7"
		if strings.Contains(values, "IPv6") {
			address = "fd00::7"
		}
		memory, err := leaseholdCheck(w, text, "POD_IP="+address, "POD_NAME=greeter-1", "NODE_NAME=node-1")
		if err != nil {
			return fmt.Errorf("%s: %w", values, err)
		}
		if values == "{}" {
			workload, err := find(all, "Deployment")
			if err != nil {
				return err
			}
			limit := workload.at("spec", "template", "spec", "containers", 0, "resources", "limits", "memory")
			if limit != "1Gi" || memory > 0.9 {
				return fmt.Errorf("instances may use %v GiB, and the pod has %v", memory, limit)
			}
		}
		_, err = leaseholdCheck(w, strings.Replace(text, "advertise:", "advertize:", 1), "POD_IP="+address)
		if err := refused(err, "advertize"); err != nil {
			return err
		}
	}
	return nil
}

// leaseholdCheck is `leasehold check --offline` of a configuration whose components are those of the workspace. It returns the memory
// that all instances may use, in GiB.
func leaseholdCheck(w *world, text string, environment ...string) (float64, error) {
	components := w.path("target/components") + "/"
	text = strings.NewReplacer("/usr/share/doc/leasehold/examples/", components, "/components/", components).Replace(text)
	file, err := w.write("services.yaml", text)
	if err != nil {
		return 0, err
	}
	command := exec.Command(w.leasehold(), "check", "--offline", file)
	command.Env = append(os.Environ(), environment...)
	checked, err := outputOf(command)
	if err != nil {
		return 0, err
	}
	var memory float64
	found := regexp.MustCompile(`with ([0-9.]+) GiB of memory`).FindStringSubmatch(checked)
	if found == nil {
		return 0, errors.New("no memory in GiB:\n" + checked)
	}
	_, err = fmt.Sscan(found[1], &memory)
	return memory, err
}

func fitsSchemas(w *world) error {
	files := []string{w.path("deploy/kubernetes/namespace.yaml")}
	for _, workload := range workloads {
		all, err := readManifests(w, workload)
		if err != nil {
			return err
		}
		for i, one := range all {
			// Kubernetes has no schema of other projects' objects.
			if one.kind() == "ServiceMonitor" {
				continue
			}
			file, err := w.writeDocument(fmt.Sprintf("schemas/%s-%d.yaml", workload, i), one)
			if err != nil {
				return err
			}
			files = append(files, file)
		}
	}
	validate := func(release string, files ...string) error {
		arguments := append([]string{"--strict", "--quiet", "--kubernetes-version", release}, files...)
		_, err := output(w.path("target/deploy/python/bin/kubernetes-validate"), arguments...)
		return err
	}
	for _, release := range releases {
		// Image volumes are newer than the oldest release.
		older := slices.DeleteFunc(slices.Clone(files), func(file string) bool { return release == releases[0] && hasImageVolume(file) })
		if err := validate(release, older...); err != nil {
			return err
		}
	}
	wrong, err := w.write("schemas/wrong.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: { name: a }\nautomountServiceAccountTokens: false\n")
	if err != nil {
		return err
	}
	return refused(validate(releases[1], wrong), "automountServiceAccountTokens")
}

func hasImageVolume(file string) bool {
	text, err := os.ReadFile(file)
	return err == nil && regexp.MustCompile(`(?m)^ +reference:`).Match(text)
}

// writeDocument writes one object to a file of its own.
func (w *world) writeDocument(name string, one document) (string, error) {
	text, err := yaml.Marshal(one)
	if err != nil {
		return "", err
	}
	return w.write(filepath.Clean(name), string(text))
}

func serviceMonitorFits(w *world) error {
	for _, workload := range workloads {
		all, err := readManifests(w, workload)
		if err != nil {
			return err
		}
		one, err := find(all, "ServiceMonitor")
		if err != nil {
			return err
		}
		text, err := yaml.Marshal(one)
		if err != nil {
			return err
		}
		var read monitoring.ServiceMonitor
		if err := yaml.UnmarshalStrict(text, &read); err != nil {
			return err
		}
		if len(read.Spec.Endpoints) != 1 || read.Spec.Endpoints[0].Port != "metrics" || !read.Spec.Endpoints[0].HonorLabels {
			return fmt.Errorf("%s: %+v", workload, read.Spec)
		}
		misspelt := bytes.Replace(text, []byte("honorLabels"), []byte("honourLabels"), 1)
		if err := refused(yaml.UnmarshalStrict(misspelt, &read), "honourLabels"); err != nil {
			return err
		}
		service, err := find(slices.DeleteFunc(all, func(one document) bool {
			return one.at("metadata", "labels", "app.kubernetes.io/component") != "metrics"
		}), "Service")
		if err != nil {
			return fmt.Errorf("the ServiceMonitor selects no Service: %w", err)
		}
		for key, value := range read.Spec.Selector.MatchLabels {
			if service.at("metadata", "labels", key) != value {
				return fmt.Errorf("the ServiceMonitor selects %s=%s, and the Service has %v", key, value, service.at("metadata", "labels"))
			}
		}
	}
	return nil
}
