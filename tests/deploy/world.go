// The programs and folders that the checks use, and the processes that end with them.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Longest wait for a program to start, or for a state.
const patience = 2 * time.Minute

// world is the workspace, a temporary folder, and the processes of one run.
type world struct {
	root      string
	temporary string
	processes []*exec.Cmd
	cluster   *cluster
}

func newWorld() (*world, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(root, "deploy/kubernetes/chart/Chart.yaml")); err != nil {
		return nil, fmt.Errorf("runs in the root of the workspace: %w", err)
	}
	temporary, err := os.MkdirTemp("", "leasehold-deploy-")
	if err != nil {
		return nil, err
	}
	return &world{root: root, temporary: temporary}, nil
}

// end kills what was started, last things first, and removes the temporary folder.
func (w *world) end() {
	for i := len(w.processes) - 1; i >= 0; i-- {
		_ = w.processes[i].Process.Signal(syscall.SIGTERM)
		_ = w.processes[i].Wait()
	}
	_ = os.RemoveAll(w.temporary)
}

// path is a path of the workspace.
func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.root}, parts...)...)
}

// built is a program under target/deploy/bin.
func (w *world) built(name string) string {
	return w.path("target/deploy/bin", name)
}

// leasehold is the binary under test.
func (w *world) leasehold() string {
	if named := os.Getenv("LEASEHOLD_BIN"); named != "" {
		return named
	}
	return w.path("target/release/leasehold")
}

// write creates a file in the temporary folder.
func (w *world) write(name, content string) (string, error) {
	path := filepath.Join(w.temporary, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// start runs a program until the end of the world. Its output is in a file, which an error quotes.
func (w *world) start(name, program string, arguments ...string) error {
	log, err := os.Create(filepath.Join(w.temporary, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return err
	}
	w.processes = append(w.processes, command)
	return nil
}

// log is the end of the output of a started program.
func (w *world) log(name string) string {
	text, _ := os.ReadFile(filepath.Join(w.temporary, name+".log"))
	return string(text[max(0, len(text)-2000):])
}

// output runs a command that must succeed, and returns its standard output.
func output(program string, arguments ...string) (string, error) {
	return outputOf(exec.Command(program, arguments...))
}

func outputOf(command *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(command.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// refused expects that a command failed, and that its error has these words.
func refused(err error, words ...string) error {
	if err == nil {
		return errors.New("it was accepted")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			return fmt.Errorf("refused without the word %q: %w", word, err)
		}
	}
	return nil
}

// waitFor tries something until it succeeds.
func waitFor(what string, try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// freePort is a port of loopback that nothing listened at a moment ago.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// startEtcd starts an etcd of its own on loopback, and returns its endpoint.
func (w *world) startEtcd(name string) (string, error) {
	program, err := exec.LookPath("etcd")
	if err != nil {
		return "", errors.New("needs etcd: apt-get install etcd-server")
	}
	client, err := freePort()
	if err != nil {
		return "", err
	}
	peer, err := freePort()
	if err != nil {
		return "", err
	}
	endpoint, peers := fmt.Sprintf("http://127.0.0.1:%d", client), fmt.Sprintf("http://127.0.0.1:%d", peer)
	err = w.start(name, program, "--data-dir", filepath.Join(w.temporary, name), "--listen-client-urls", endpoint,
		"--advertise-client-urls", endpoint, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
		"--initial-cluster", "default="+peers, "--unsafe-no-fsync")
	if err != nil {
		return "", err
	}
	err = waitFor("etcd", func() error {
		connection, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", client), time.Second)
		if err == nil {
			connection.Close()
		}
		return err
	})
	return endpoint, err
}
