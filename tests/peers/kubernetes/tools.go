//go:build tools

// What is built: it stands here so that go.sum has all that it needs.
package tools

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
