package ignition

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// userDataName is the name of the user data in errors.
const userDataName = "cloudInit.userData"

// UserData renders the user data of cloud-init, a template like a Layer. Errors
// contain no value of a Secret.
func UserData(text string, facts any, secret func(layer, name, key string) (string, error)) ([]byte, error) {
	layer := Layer{Name: userDataName, Butane: text}
	secrets := newVault(secret).reader(userDataName)
	doc, err := renderUserData(layer, facts, secrets.get)
	if err == nil || !secrets.read() || secrets.failed {
		return doc.text, err
	}
	// As in compileLayer: the message may quote a Secret.
	if _, err := renderUserData(layer, facts, placeholder); err != nil {
		return nil, err
	}
	return nil, &layerError{layer: userDataName, line: lineOf(err),
		message: "the value of a Secret makes it invalid: pass it through quote, or indent it if it has several lines"}
}

func renderUserData(layer Layer, facts any, secret secretFunc) (document, error) {
	doc, err := render(layer, facts, secret, newBudget())
	if err != nil {
		return document{}, err
	}
	return doc, doc.checkUserData()
}

// otherUserData returns the first lines of user data in other formats than
// cloud-config (cloud-init's docs, User data formats).
func otherUserData() []string {
	return []string{"#!", "#include", "#cloud-boothook", "#cloud-config-archive", "#cloud-config-jsonp", "#part-handler", "#upstart-job",
		"## template:", "Content-Type:", "MIME-Version:"}
}

// checkUserData refuses user data that cloud-init would ignore with just a line
// in its log.
func (d document) checkUserData() error {
	text := string(d.text)
	other := slices.ContainsFunc(otherUserData(), func(begin string) bool { return strings.HasPrefix(text, begin) })
	switch {
	case text == "" || other:
		return nil
	case !strings.HasPrefix(text, "#cloud-config"):
		return d.errorf(1, "cloud-init would ignore this: begin with #cloud-config, #!/bin/sh, or another of its headers")
	}
	var node yaml.Node
	if err := yaml.Unmarshal(d.text, &node); err != nil {
		return yamlError(d, err)
	}
	if len(node.Content) > 0 && node.Content[0].Kind != yaml.MappingNode {
		return d.errorf(node.Content[0].Line, "invalid #cloud-config: want a YAML mapping")
	}
	return nil
}
