// The job for Nomad, read with its own API's types: `nomad` itself is not a module that can be built here.
//
// Each block and attribute has to be a field of the type, as in `nomad job validate`; the block `config`, which a driver reads, is
// left to the driver.

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

var nomadChecks = []check{
	{"the job has only fields that Nomad knows, with values of their types", jobFits},
	{"a misspelt field and a wrong value are refused", refusesJobs},
	{"a task has the time for a drain", killTimeoutSuffices},
	{"leasehold accepts the configuration of the job, and a task has the memory for it", jobConfigurationIsAccepted},
}

func jobFile(w *world) (string, string, error) {
	path := w.path("deploy/nomad/leasehold.nomad.hcl")
	text, err := os.ReadFile(path)
	return path, string(text), err
}

// readJob reads a job, with the mistakes that it has.
func readJob(path, text string) (*hclsyntax.Body, error) {
	file, problems := hclsyntax.ParseConfig([]byte(text), filepath.Base(path), hcl.InitialPos)
	if problems.HasErrors() {
		return nil, problems
	}
	reader := jobReader{folder: filepath.Dir(path)}
	body := file.Body.(*hclsyntax.Body)
	for name := range body.Attributes {
		reader.mistake(name + ": a job file has blocks alone")
	}
	for _, block := range body.Blocks {
		if block.Type != "job" || len(block.Labels) != 1 {
			reader.mistake(block.Type + ": not a job with a name")
			continue
		}
		reader.body(block.Body, reflect.TypeFor[api.Job](), "job")
	}
	if len(reader.mistakes) > 0 {
		return nil, errors.New(strings.Join(reader.mistakes, "\n"))
	}
	return body, nil
}

// jobReader holds the body of a job against the types of Nomad's API.
type jobReader struct {
	folder   string
	mistakes []string
}

func (r *jobReader) mistake(text string) { r.mistakes = append(r.mistakes, text) }

// fields are the fields of a type by their names in a job, with their kinds.
func fields(of reflect.Type) map[string]reflect.StructField {
	found := map[string]reflect.StructField{}
	for field := range of.Fields() {
		name, kind, _ := strings.Cut(field.Tag.Get("hcl"), ",")
		if name != "" && kind != "label" {
			found[name] = field
		}
	}
	return found
}

func (r *jobReader) body(body *hclsyntax.Body, of reflect.Type, at string) {
	known := fields(of)
	for name, attribute := range body.Attributes {
		field, ok := known[name]
		if !ok || strings.HasSuffix(field.Tag.Get("hcl"), ",block") {
			r.mistake(fmt.Sprintf("%s.%s: no such attribute", at, name))
			continue
		}
		r.value(attribute.Expr, field.Type, at+"."+name)
	}
	for _, block := range body.Blocks {
		field, ok := known[block.Type]
		if !ok || !strings.HasSuffix(field.Tag.Get("hcl"), ",block") {
			r.mistake(fmt.Sprintf("%s.%s: no such block", at, block.Type))
			continue
		}
		inner := field.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		// Maps are free: metadata, environment, the configuration of a driver.
		if inner.Kind() != reflect.Struct {
			continue
		}
		r.body(block.Body, inner, at+"."+block.Type)
	}
}

// value checks a value where it is known before the job runs: a variable such as ${meta.rack} is not.
func (r *jobReader) value(expression hclsyntax.Expression, of reflect.Type, at string) {
	if len(expression.Variables()) > 0 {
		return
	}
	value, problems := expression.Value(&hcl.EvalContext{Functions: map[string]function.Function{"file": r.file()}})
	if problems.HasErrors() {
		r.mistake(at + ": " + problems.Error())
		return
	}
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	is := func(want cty.Type) {
		if value.Type() != want {
			r.mistake(fmt.Sprintf("%s: is a %s, and has to be a %s", at, value.Type().FriendlyName(), want.FriendlyName()))
		}
	}
	switch {
	case of == reflect.TypeFor[time.Duration]():
		if is(cty.String); value.Type() == cty.String {
			if _, err := time.ParseDuration(value.AsString()); err != nil {
				r.mistake(at + ": " + err.Error())
			}
		}
	case of.Kind() == reflect.String:
		is(cty.String)
	case of.Kind() == reflect.Bool:
		is(cty.Bool)
	case of.Kind() >= reflect.Int && of.Kind() <= reflect.Float64:
		is(cty.Number)
	case of.Kind() == reflect.Slice:
		if !value.Type().IsTupleType() && !value.Type().IsListType() {
			r.mistake(at + ": has to be a list")
		}
	}
}

// file is the function of that name in a job.
func (r *jobReader) file() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(arguments []cty.Value, _ cty.Type) (cty.Value, error) {
			text, err := os.ReadFile(filepath.Join(r.folder, arguments[0].AsString()))
			return cty.StringVal(string(text)), err
		},
	})
}

func jobFits(w *world) error {
	path, text, err := jobFile(w)
	if err != nil {
		return err
	}
	_, err = readJob(path, text)
	return err
}

func refusesJobs(w *world) error {
	path, text, err := jobFile(w)
	if err != nil {
		return err
	}
	for _, mistake := range []struct{ right, wrong, word string }{
		{"kill_timeout = ", "kill_timeouts = ", "kill_timeouts: no such attribute"},
		{"check_restart {", "check_restarts {", "check_restarts: no such block"},
		{`"60s"`, `"60 seconds"`, "kill_timeout"},
		{"count = 3", `count = "three"`, "count: is a string"},
		{`"services.yaml"`, `"service.yaml"`, "service.yaml"},
		{`job "leasehold"`, "job", "job"},
		{"spread {", "spread", "block definition required"},
	} {
		changed := strings.Replace(text, mistake.right, mistake.wrong, 1)
		if changed == text {
			return fmt.Errorf("the job has no %s", mistake.right)
		}
		_, err := readJob(path, changed)
		if err := refused(err, mistake.word); err != nil {
			return fmt.Errorf("%s: %w", mistake.wrong, err)
		}
	}
	return nil
}

// inside is the only block of these types, one in the other.
func inside(body *hclsyntax.Body, types ...string) (*hclsyntax.Body, error) {
	for _, kind := range types {
		var found *hclsyntax.Body
		for _, block := range body.Blocks {
			if block.Type == kind {
				found = block.Body
			}
		}
		if found == nil {
			return nil, fmt.Errorf("there is no block %s", kind)
		}
		body = found
	}
	return body, nil
}

func killTimeoutSuffices(w *world) error {
	path, text, err := jobFile(w)
	if err != nil {
		return err
	}
	job, err := readJob(path, text)
	if err != nil {
		return err
	}
	task, err := inside(job, "job", "group", "task")
	if err != nil {
		return err
	}
	value, problems := task.Attributes["kill_timeout"].Expr.Value(nil)
	if problems.HasErrors() {
		return problems
	}
	timeout, err := time.ParseDuration(value.AsString())
	if err != nil {
		return err
	}
	configuration, err := os.ReadFile(w.path("deploy/nomad/services.yaml"))
	if err != nil {
		return err
	}
	drain, err := drainTime(string(configuration))
	if err == nil && timeout <= drain {
		err = fmt.Errorf("%v for a drain of %v", timeout, drain)
	}
	return err
}

func jobConfigurationIsAccepted(w *world) error {
	text, err := os.ReadFile(w.path("deploy/nomad/services.yaml"))
	if err != nil {
		return err
	}
	// Nomad's template language would read these.
	if strings.Contains(string(text), "{{") {
		return errors.New("the configuration has {{")
	}
	secret, err := w.write("etcd-password", "secret\n")
	if err != nil {
		return err
	}
	configuration := strings.Replace(string(text), "/secrets/etcd-password", secret, 1)
	memory, err := leaseholdCheck(w, configuration, "NOMAD_HOST_ADDR_greeter=10.0.0.7:23456")
	if err != nil {
		return err
	}
	_, job, err := jobFile(w)
	if err == nil && (memory > 0.9 || !strings.Contains(job, "memory_max = 1024")) {
		err = fmt.Errorf("instances may use %v GiB, and the task has another limit than 1 GiB", memory)
	}
	return err
}
