package client

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
)

func imageTable(c *call) table[*resource.Image] {
	now := c.now()
	return table[*resource.Image]{
		name:  func(i *resource.Image) string { return i.Name },
		empty: "There are no images. Push one with any OCI client; 'mp images --help' shows how.",
		columns: []column[*resource.Image]{
			{head: "NAME", cell: func(i *resource.Image) string { return i.Name }},
			{head: "TAGS", cell: func(i *resource.Image) string { return strings.Join(i.Tags, ", ") }},
			{head: "UPDATED", cell: func(i *resource.Image) string { return age(i.UpdatedAt, now) }},
		},
	}
}

func imagesPath(c *call) (string, error) {
	t, err := c.need(inOrganization)
	return t.organization("images"), err
}

func (p *program) imageCommands() *command {
	return &command{
		name: "images", aliases: []string{"image"}, usage: "list and delete the organization's images",
		about: "Images are pushed by any OCI client into ACCOUNT/ORGANIZATION/NAME at the platform's\nregistry, whose address 'mp version' shows, with your e-mail address and password.",
		sub: []*command{
			{
				name: "list", aliases: []string{"ls"}, usage: "list the organization's images",
				examples: []string{"mp images list"},
				flags:    flags(placeFlags(inOrganization), outputFlags()),
				run: func(c *call) error {
					path, err := imagesPath(c)
					if err != nil {
						return err
					}
					items, err := list[*resource.Image](c, path, nil)
					if err != nil {
						return err
					}
					return printList(c, items, imageTable(c))
				},
			},
			{
				name: "delete", aliases: []string{"rm"}, usage: "delete an image, or one tag or digest of it", args: "NAME[:TAG]",
				names:    names(func(i *resource.Image) string { return i.Name }, imagesPath),
				examples: []string{"mp images delete hello:1 --yes", "mp images delete hello@sha256:4f0c... --yes", "mp images delete hello --yes"},
				flags:    flags(placeFlags(inOrganization), yesFlag(), dryRunFlag()),
				run:      (*call).deleteImage,
			},
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
		return usagef("write it like hello:1", "%q names no image", c.arg(0))
	}
	what := "image " + name
	path := t.organization("images", name)
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
