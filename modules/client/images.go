package client

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) images() noun[resource.Image] {
	return noun[resource.Image]{
		one:   "image",
		in:    inOrganization,
		empty: "There are no images. Push one with any OCI client; 'mp images --help' shows how.",
		columns: []column[resource.Image]{
			{head: "NAME", cell: func(i *resource.Image) string { return i.Name }},
			{head: "TAGS", cell: func(i *resource.Image) string { return strings.Join(i.Tags, ", ") }},
			{head: "UPDATED", cell: func(i *resource.Image) string { return since(i.UpdatedAt) }},
		},
	}
}

// imagesWithTags offers "hello:1" for each tag there is.
func (c *call) imagesWithTags() ([]string, error) {
	t, err := c.need(inOrganization)
	if err != nil {
		return nil, err
	}
	items, err := c.images().all(c, t)
	var all []string
	for _, i := range items {
		name := i.Name[strings.LastIndexByte(i.Name, '/')+1:]
		for _, tag := range i.Tags {
			all = append(all, name+":"+tag)
		}
	}
	return all, err
}

func (p *program) imageCommands() *command {
	images := p.images()
	return &command{
		name:  "images, image",
		usage: "list and delete the organization's images",
		about: `Push images with any OCI client to ACCOUNT/ORGANIZATION/NAME in the platform's registry,
with your e-mail address and password. 'mp version' shows the registry's address.`,
		sub: []*command{
			images.list(help("list the organization's images", "mp images list")),
			images.delete("", command{
				usage: "delete an image, or one tag or digest of it",
				args:  "NAME[:TAG]",
				examples: []string{
					"mp images delete hello:1 --yes",
					"mp images delete hello@sha256:4f0c... --yes",
					"mp images delete hello --yes",
				},
				run: (*call).deleteImage,
			}),
		},
	}
}

func (c *call) deleteImage() error {
	t, err := c.need(inOrganization)
	if err != nil {
		return err
	}
	name, ref := splitImage(c.arg(0), t)
	if name == "" {
		return usagef("write it like hello:1", "%q does not name an image", c.arg(0))
	}
	what := "image " + name
	path := t.at(inOrganization, "images", name)
	if ref != "" {
		what += ", " + ref
		path += "?" + url.Values{"tag": {ref}}.Encode()
	} else {
		what += " with all its tags"
	}
	if err := c.confirm("Delete "+what+"?", ""); err != nil {
		return err
	}
	if err := c.write(http.MethodDelete, path, nil, nil); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "Deleted %s.\n", what)
	return err
}

// splitImage takes "hello:1", "acme/web/hello:1" or "hello@sha256:..." apart.
func splitImage(text string, t Target) (name, ref string) {
	name, ref, byDigest := strings.Cut(text, "@")
	if !byDigest {
		name, ref, _ = strings.Cut(text, ":")
	}
	return strings.TrimPrefix(name, t.Account+"/"+t.Organization+"/"), ref
}
