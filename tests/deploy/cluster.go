// The manifests on a real API server, with an etcd of its own. There are no controllers and no nodes: the server admits, validates
// and stores objects, and starts no pod.

package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const namespace = "leasehold"

var clusterChecks = []check{
	{"an API server is ready", startCluster},
	{"every manifest passes a dry run of the server, without a warning", dryRuns},
	{"every manifest can be applied, and again", applies},
	{"a misspelt field is refused in every object", refusesMisspelt},
	{"the restricted Pod Security Standard admits the pods, and refuses others", podsAreAdmitted},
	{"helm installs, upgrades and uninstalls the chart", helmInstalls},
}

// cluster is a running API server.
type cluster struct {
	kubeconfig string
}

// kubectl runs a command on the cluster. A warning of the server is an error.
func (w *world) kubectl(arguments ...string) (string, error) {
	return outputOf(w.kubectlCommand(arguments...))
}

func (w *world) kubectlCommand(arguments ...string) *exec.Cmd {
	return exec.Command(w.built("kubectl"), append([]string{"--kubeconfig", w.cluster.kubeconfig, "--warnings-as-errors"}, arguments...)...)
}

func startCluster(w *world) error {
	etcd, err := w.startEtcd("cluster-etcd")
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	accounts, err := w.write("accounts.pem", string(pem.EncodeToMemory(&block)))
	if err != nil {
		return err
	}
	token := rand.Text()
	tokens, err := w.write("tokens.csv", token+",admin,admin,system:masters\n")
	if err != nil {
		return err
	}
	certificates := filepath.Join(w.temporary, "certificates")
	err = w.start("kube-apiserver", w.built("kube-apiserver"), "--etcd-servers", etcd, "--bind-address", "127.0.0.1",
		"--secure-port", fmt.Sprint(port), "--cert-dir", certificates, "--token-auth-file", tokens,
		"--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", accounts,
		"--service-account-signing-key-file", accounts)
	if err != nil {
		return err
	}
	w.cluster = &cluster{}
	w.cluster.kubeconfig, err = w.write("kubeconfig.yaml", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{ name: test, cluster: { server: "https://127.0.0.1:%d", certificate-authority: %s } }]
users: [{ name: admin, user: { token: %s } }]
contexts: [{ name: test, context: { cluster: test, user: admin } }]
current-context: test
`, port, filepath.Join(certificates, "apiserver.crt"), token))
	if err != nil {
		return err
	}
	err = waitFor("the API server", func() error {
		_, err := w.kubectl("get", "--raw", "/readyz")
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, w.log("kube-apiserver"))
	}
	if _, err := w.kubectl("apply", "--filename", w.path("tests/deploy/testdata/servicemonitor-crd.yaml")); err != nil {
		return err
	}
	_, err = w.kubectl("wait", "--for", "condition=Established", "--timeout", "60s", "crd/servicemonitors.monitoring.coreos.com")
	return err
}

// files are everything that is applied, the namespace first.
func files(w *world) []string {
	all := []string{w.path("deploy/kubernetes/namespace.yaml")}
	for _, workload := range workloads {
		all = append(all, manifestFile(w, workload))
	}
	return all
}

func (w *world) apply(file string, arguments ...string) (string, error) {
	return w.kubectl(append([]string{"apply", "--server-side", "--validate=strict", "--filename", file}, arguments...)...)
}

func dryRuns(w *world) error {
	for i, file := range files(w) {
		if _, err := w.apply(file, "--dry-run=server"); err != nil {
			return err
		}
		if i == 0 { // The other objects need the namespace.
			if _, err := w.apply(file); err != nil {
				return err
			}
		}
	}
	return nil
}

func applies(w *world) error {
	for _, file := range files(w) {
		// The two workloads have one name, and are alternatives.
		for _, arguments := range [][]string{{}, {}, {"--force-conflicts"}} {
			if _, err := w.apply(file, arguments...); err != nil {
				return err
			}
		}
		if _, err := w.kubectl("get", "--filename", file); err != nil {
			return err
		}
		if strings.Contains(file, "manifests") {
			if _, err := w.kubectl("delete", "--wait=false", "--filename", file); err != nil {
				return err
			}
		}
	}
	return nil
}

func refusesMisspelt(w *world) error {
	for _, workload := range workloads {
		all, err := readManifests(w, workload)
		if err != nil {
			return err
		}
		for _, one := range all {
			wrong := maps.Clone(one)
			if spec, ok := one["spec"].(map[string]any); ok {
				spec = maps.Clone(spec)
				spec["misspelt"] = "x"
				wrong["spec"] = spec
			} else {
				wrong["misspelt"] = "x"
			}
			file, err := w.writeDocument("misspelt.yaml", wrong)
			if err != nil {
				return err
			}
			_, err = w.apply(file, "--dry-run=server")
			if err := refused(err, "misspelt"); err != nil {
				return fmt.Errorf("%s: %w", one.kind(), err)
			}
		}
	}
	return nil
}

func podsAreAdmitted(w *world) error {
	for _, workload := range workloads {
		if _, err := w.apply(manifestFile(w, workload)); err != nil {
			return err
		}
		all, err := readManifests(w, workload)
		if err != nil {
			return err
		}
		found, err := find(all, "Deployment", "DaemonSet")
		if err != nil {
			return err
		}
		create := func(change func(pod map[string]any)) error {
			// Objects of YAML are maps that a copy would share.
			text, err := yaml.Marshal(found.at("spec", "template"))
			if err != nil {
				return err
			}
			var pod document
			if err := yaml.Unmarshal(text, &pod); err != nil {
				return err
			}
			pod["apiVersion"], pod["kind"] = "v1", "Pod"
			pod["metadata"].(map[string]any)["name"] = "pod-of-" + workload
			pod["metadata"].(map[string]any)["namespace"] = namespace
			change(pod["spec"].(map[string]any))
			file, err := w.writeDocument("pod.yaml", pod)
			if err != nil {
				return err
			}
			_, err = w.kubectl("create", "--filename", file)
			return err
		}
		if err := create(func(map[string]any) {}); err != nil {
			return err
		}
		for _, change := range []func(map[string]any){
			func(pod map[string]any) { delete(pod, "securityContext") },
			func(pod map[string]any) { pod["hostNetwork"] = true },
			func(pod map[string]any) {
				container := pod["containers"].([]any)[0].(map[string]any)
				delete(container["securityContext"].(map[string]any), "capabilities")
			},
		} {
			if err := refused(create(change), "violates PodSecurity"); err != nil {
				return err
			}
		}
		// A workload is stored all the same, and its pods never come: the server only warns.
		text, err := os.ReadFile(manifestFile(w, workload))
		if err != nil {
			return err
		}
		file, err := w.write("violating.yaml", strings.Replace(string(text), "runAsNonRoot: true", "runAsNonRoot: false", 1))
		if err != nil {
			return err
		}
		_, err = w.apply(file, "--dry-run=server")
		if err := refused(err, "would violate PodSecurity"); err != nil {
			return err
		}
		if _, err := w.kubectl("delete", "--wait=false", "--filename", manifestFile(w, workload)); err != nil {
			return err
		}
	}
	return nil
}

func helmInstalls(w *world) error {
	helm := func(arguments ...string) (string, error) {
		return output(w.built("helm"), append(arguments, "--kubeconfig", w.cluster.kubeconfig, "--namespace", namespace)...)
	}
	chart := w.path("deploy/kubernetes/chart")
	notes, err := helm("install", "shop", chart)
	if err != nil {
		return err
	}
	if !strings.Contains(notes, "exec deployment/shop-leasehold -- leasehold status") {
		return errors.New("the notes do not name the workload:\n" + notes)
	}
	for _, arguments := range [][]string{
		{"upgrade", "shop", chart, "--values", w.path("deploy/kubernetes/values/deployment.yaml")},
		{"upgrade", "shop", chart, "--values", w.path("deploy/kubernetes/values/daemonset.yaml")},
	} {
		if _, err := helm(arguments...); err != nil {
			return err
		}
	}
	if _, err := w.kubectl("--namespace", namespace, "get", "daemonset/shop-leasehold"); err != nil {
		return err
	}
	if _, err := helm("uninstall", "shop", "--no-hooks"); err != nil {
		return err
	}
	left, err := w.kubectl("--namespace", namespace, "get", "deployments,daemonsets,services,configmaps", "--selector", "app.kubernetes.io/instance=shop", "--output", "name")
	if err == nil && left != "" {
		err = errors.New("left after the end: " + left)
	}
	return err
}
