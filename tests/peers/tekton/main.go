// What a cluster with Tekton says to our manifests, by the code of Tekton Pipelines and Triggers themselves.
//
//	peer-tekton validate FILE...   validates each object as the admission webhooks do
//	peer-tekton deliver FILE...    delivers webhooks to the Triggers in the files: JSON requests on stdin, one a line
//
// A request is {"body", "headers", "secrets": {NAME: {KEY: VALUE}}}; body is a text. The answer to it is one line, too:
// {"triggers": {NAME: {"stopped", "error", "created"}}}. A created PipelineRun has the defaults that the cluster sets, and
// is validated.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	triggersv1 "github.com/tektoncd/triggers/pkg/apis/triggers/v1beta1"
	"github.com/tektoncd/triggers/pkg/interceptors/cel"
	"github.com/tektoncd/triggers/pkg/interceptors/github"
	"github.com/tektoncd/triggers/pkg/interceptors/gitlab"
	"github.com/tektoncd/triggers/pkg/template"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"knative.dev/pkg/apis"
	"sigs.k8s.io/yaml"
)

// An object as the API server holds it: what it validates, and what it fills in before.
type object interface {
	apis.Defaultable
	apis.Validatable
	metav1.Object
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: peer-tekton validate|deliver FILE...")
	}
	objects, err := readAll(os.Args[2:])
	if err != nil {
		log.Fatal(err)
	}
	switch os.Args[1] {
	case "validate":
		for _, found := range objects {
			if err := validate(found); err != nil {
				log.Fatalf("%T %s: %v", found, found.GetName(), err)
			}
			fmt.Printf("%T %s\n", found, found.GetName())
		}
	case "deliver":
		if err := deliver(newCluster(objects), os.Stdin, os.Stdout); err != nil {
			log.Fatal(err)
		}
	default:
		log.Fatalf("unknown command %s", os.Args[1])
	}
}

// readAll returns the objects of Tekton's kinds in YAML files; others are left to Kubernetes.
func readAll(paths []string) ([]object, error) {
	var objects []object
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			found, err := read(document)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			if found != nil {
				objects = append(objects, found)
			}
		}
	}
	return objects, nil
}

// read returns an object with its defaults; nil if its kind is none of Tekton's.
func read(document []byte) (object, error) {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return nil, err
	}
	var found object
	switch kind.APIVersion + " " + kind.Kind {
	case "tekton.dev/v1 Task":
		found = &pipelinev1.Task{}
	case "tekton.dev/v1 Pipeline":
		found = &pipelinev1.Pipeline{}
	case "tekton.dev/v1 PipelineRun":
		found = &pipelinev1.PipelineRun{}
	case "triggers.tekton.dev/v1beta1 EventListener":
		found = &triggersv1.EventListener{}
	case "triggers.tekton.dev/v1beta1 Trigger":
		found = &triggersv1.Trigger{}
	case "triggers.tekton.dev/v1beta1 TriggerBinding":
		found = &triggersv1.TriggerBinding{}
	case "triggers.tekton.dev/v1beta1 TriggerTemplate":
		found = &triggersv1.TriggerTemplate{}
	default:
		return nil, nil
	}
	// Strictly, as the webhooks do: a field that Tekton does not know is an error.
	if err := yaml.UnmarshalStrict(document, found); err != nil {
		return nil, err
	}
	if prefix := found.GetGenerateName(); found.GetName() == "" && prefix != "" {
		found.SetName(prefix + "x7k2p")
	}
	found.SetDefaults(context.Background())
	return found, nil
}

func validate(found object) error {
	if err := found.Validate(apis.WithinCreate(context.Background())); err != nil {
		return err
	}
	return nil
}

type cluster struct {
	listener  *triggersv1.EventListener
	triggers  []*triggersv1.Trigger
	bindings  map[string]*triggersv1.TriggerBinding
	templates map[string]*triggersv1.TriggerTemplate
}

func newCluster(objects []object) cluster {
	made := cluster{
		bindings:  map[string]*triggersv1.TriggerBinding{},
		templates: map[string]*triggersv1.TriggerTemplate{},
	}
	for _, found := range objects {
		switch known := found.(type) {
		case *triggersv1.EventListener:
			made.listener = known
		case *triggersv1.Trigger:
			made.triggers = append(made.triggers, known)
		case *triggersv1.TriggerBinding:
			made.bindings[known.Name] = known
		case *triggersv1.TriggerTemplate:
			made.templates[known.Name] = known
		}
	}
	return made
}

type request struct {
	Body    string                       `json:"body"`
	Headers map[string]string            `json:"headers"`
	Secrets map[string]map[string]string `json:"secrets"`
}

type outcome struct {
	// Why an interceptor stopped the event.
	Stopped string `json:"stopped,omitempty"`
	// Why nothing could be made of it.
	Error   string            `json:"error,omitempty"`
	Created []json.RawMessage `json:"created,omitempty"`
}

func deliver(to cluster, in io.Reader, out io.Writer) error {
	selector, err := metav1.LabelSelectorAsSelector(to.listener.Spec.LabelSelector)
	if err != nil {
		return err
	}
	requests := json.NewDecoder(in)
	for {
		var event request
		if err := requests.Decode(&event); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		outcomes := map[string]outcome{}
		for _, trigger := range to.triggers {
			if selector.Matches(labelSet(trigger.Labels)) {
				outcomes[trigger.Name] = to.process(trigger, event)
			}
		}
		if err := json.NewEncoder(out).Encode(map[string]any{"triggers": outcomes}); err != nil {
			return err
		}
	}
}

type labelSet map[string]string

func (l labelSet) Has(label string) bool              { _, has := l[label]; return has }
func (l labelSet) Get(label string) string            { return l[label] }
func (l labelSet) Lookup(label string) (string, bool) { value, has := l[label]; return value, has }

type secrets map[string]map[string]string

func (s secrets) Get(_ context.Context, _ string, reference *triggersv1.SecretRef) ([]byte, error) {
	value, found := s[reference.SecretName][reference.SecretKey]
	if !found {
		return nil, fmt.Errorf("secrets %q has no key %q", reference.SecretName, reference.SecretKey)
	}
	return []byte(value), nil
}

// process does what the listener's pod does with a trigger.
func (c cluster) process(trigger *triggersv1.Trigger, event request) outcome {
	header := http.Header{}
	for name, value := range event.Headers {
		header.Set(name, value)
	}
	extensions, stopped, err := intercept(trigger, event, header)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	if stopped != "" {
		return outcome{Stopped: stopped}
	}
	resolved, err := template.ResolveTrigger(*trigger, c.binding, nil, c.template)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	context := template.NewTriggerContext("11111111-1111-1111-1111-111111111111")
	params, err := template.ResolveParams(resolved, []byte(event.Body), header, extensions, context)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	result := outcome{}
	for _, created := range template.ResolveResources(resolved.TriggerTemplate, params) {
		found, err := read(created)
		if err == nil && found == nil {
			err = errors.New("the template makes an object of another kind")
		}
		if err == nil {
			err = validate(found)
		}
		if err != nil {
			return outcome{Error: err.Error()}
		}
		result.Created = append(result.Created, created)
	}
	return result
}

func intercept(trigger *triggersv1.Trigger, event request, header http.Header) (map[string]any, string, error) {
	extensions := map[string]any{}
	known := map[string]triggersv1.InterceptorInterface{
		"cel":    cel.NewInterceptor(secrets(event.Secrets)),
		"github": github.NewInterceptor(secrets(event.Secrets)),
		"gitlab": gitlab.NewInterceptor(secrets(event.Secrets)),
	}
	for _, wanted := range trigger.Spec.Interceptors {
		interceptor, found := known[wanted.Ref.Name]
		if !found || wanted.Ref.Kind != triggersv1.ClusterInterceptorKind {
			return nil, "", fmt.Errorf("no such interceptor: %s %s", wanted.Ref.Kind, wanted.Ref.Name)
		}
		params := map[string]any{}
		for _, param := range wanted.Params {
			params[param.Name] = param.Value
		}
		answer := interceptor.Process(context.Background(), &triggersv1.InterceptorRequest{
			Body:              event.Body,
			Header:            header,
			Extensions:        extensions,
			InterceptorParams: params,
			Context: &triggersv1.TriggerContext{
				EventURL:  "http://listener/",
				EventID:   "1",
				TriggerID: "namespaces/firmware/triggers/" + trigger.Name,
			},
		})
		if !answer.Continue {
			return nil, answer.Status.Message, nil
		}
		for key, value := range answer.Extensions {
			extensions[key] = value
		}
	}
	return extensions, "", nil
}

func (c cluster) binding(name string) (*triggersv1.TriggerBinding, error) {
	if found, known := c.bindings[name]; known {
		return found, nil
	}
	return nil, fmt.Errorf("no TriggerBinding %s", name)
}

func (c cluster) template(name string) (*triggersv1.TriggerTemplate, error) {
	if found, known := c.templates[name]; known {
		return found, nil
	}
	return nil, fmt.Errorf("no TriggerTemplate %s", name)
}
