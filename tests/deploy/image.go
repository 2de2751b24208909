// The container image on a real engine: built, run as a restricted container would, checked, stopped.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const imageName = "leasehold-deploy-test"

var imageChecks = []check{
	{"an engine builds the image", imageIsBuilt},
	{"it has no shell, and a user other than root", imageIsSmall},
	{"a container with a read-only root serves, and is healthy", imageServes},
	{"any other user works as well", anyUserServes},
	{"a container without a configuration ends with the reason", imageExplains},
}

// engine is podman with images and containers of its own, which leaves those of the user alone.
func (w *world) engine(arguments ...string) *exec.Cmd {
	store := w.path("target/deploy/containers")
	// runc runs on machines with either version of cgroups.
	own := []string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}
	return exec.Command("podman", append(own, arguments...)...)
}

func (w *world) podman(arguments ...string) (string, error) {
	text, err := outputOf(w.engine(arguments...))
	return strings.TrimSpace(text), err
}

func imageIsBuilt(w *world) error {
	for _, program := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return errors.New("needs podman and runc: apt-get install --no-install-recommends podman runc")
		}
	}
	// HEALTHCHECK is a part of Docker's format alone.
	_, err := w.podman("build", "--format", "docker", "--tag", imageName, "--build-arg", "VERSION=test", w.path("target/image"))
	if err == nil {
		_, err = w.podman("image", "prune", "--force") // Those of former runs.
	}
	return err
}

func imageIsSmall(w *world) error {
	text, err := w.podman("image", "inspect", imageName)
	if err != nil {
		return err
	}
	var images []struct {
		Size   int
		Config struct {
			User        string
			Entrypoint  []string
			Healthcheck struct{ Test []string }
		}
		HealthCheck struct{ Test []string }
	}
	if err := json.Unmarshal([]byte(text), &images); err != nil {
		return err
	}
	image := images[0]
	probe := append(image.Config.Healthcheck.Test, image.HealthCheck.Test...)
	if image.Config.User != "65532:65532" || len(image.Config.Entrypoint) != 1 || len(probe) == 0 || probe[0] != "CMD" {
		return fmt.Errorf("%+v", image)
	}
	if _, err := w.run("--entrypoint", "/bin/sh", imageName, "-c", "true"); err == nil {
		return errors.New("it has a shell")
	}
	version, err := w.run(imageName, "--version")
	if err == nil && !strings.HasPrefix(version, "leasehold ") {
		err = errors.New(version)
	}
	fmt.Printf("    %.1f MB\n", float64(image.Size)/1e6)
	return err
}

// run runs a container to its end, as a restricted pod would be.
func (w *world) run(arguments ...string) (string, error) {
	return w.podman(append(append([]string{"run", "--rm"}, restricted...), arguments...)...)
}

// Limits are set because an engine would raise them, which not every machine permits.
var restricted = []string{"--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "host",
	"--health-interval", "disable", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"}

func imageServes(w *world) error { return serves(w, "serving") }

func anyUserServes(w *world) error { return serves(w, "any-user", "--user", "1000650000:0") }

// serves starts a container, calls its service, and stops it.
func serves(w *world, name string, arguments ...string) error {
	etcd, err := w.startEtcd("etcd-of-" + name)
	if err != nil {
		return err
	}
	// Looked up by the libraries of the image.
	etcd = strings.Replace(etcd, "127.0.0.1", "localhost", 1)
	port, err := freePort()
	if err != nil {
		return err
	}
	configuration, err := w.write(name+"/services.yaml", fmt.Sprintf(`etcd: { endpoints: [%q] }
admin: { listen: unix:/run/leasehold/admin.sock }
services:
  - name: greeter
    component: /usr/share/doc/leasehold/examples/greeter.wasm
    listen: 127.0.0.1:%d
    limits: { settle_time: 1s, memory: 16MiB, concurrency: 40 }
`, etcd, port))
	if err != nil {
		return err
	}
	container := append([]string{"run", "--detach", "--replace", "--name", name}, restricted...)
	container = append(container, "--tmpfs", "/run/leasehold", "--tmpfs", "/var/cache/leasehold",
		"--volume", configuration+":/etc/leasehold/services.yaml:ro")
	if _, err := w.podman(append(append(container, arguments...), imageName)...); err != nil {
		return err
	}
	defer func() { _ = w.engine("rm", "--force", "--time", "0", name).Run() }()
	logs := func(err error) error {
		text, _ := w.engine("logs", name).CombinedOutput()
		return fmt.Errorf("%w\n%s", err, text)
	}
	for _, probe := range []string{"live", "serving", "ready"} {
		err := waitFor("probe "+probe, func() error {
			_, err := w.podman("exec", name, "leasehold", "status", "--probe", probe)
			return err
		})
		if err != nil {
			return logs(err)
		}
	}
	if _, err := w.podman("healthcheck", "run", name); err != nil {
		return logs(err)
	}
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return logs(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	isListed := func(want bool) error {
		listed, err := output(w.leasehold(), "ls", "--etcd", etcd)
		if err == nil && strings.Contains(listed, "greeter") != want {
			err = fmt.Errorf("registered is not %v:\n%s", want, listed)
		}
		return err
	}
	if err := isListed(true); err != nil {
		return logs(err)
	}
	// Ends as in a cluster: SIGTERM, and time for a drain.
	begun := time.Now()
	if _, err := w.podman("stop", "--time", "60", name); err != nil {
		return err
	}
	code, err := w.podman("inspect", "--format", "{{.State.ExitCode}}", name)
	if err != nil {
		return err
	}
	if code != "0" {
		return logs(errors.New("exit code " + code))
	}
	if took := time.Since(begun); took < time.Second || took > 30*time.Second {
		return fmt.Errorf("the drain took %v", took)
	}
	return isListed(false)
}

func imageExplains(w *world) error {
	_, err := w.run(imageName)
	return refused(err, "exit status 64", "/etc/leasehold/services.yaml")
}
