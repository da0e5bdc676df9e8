package api

import (
	"context"
	"errors"
	"regexp"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// ImagePath names a repository of an organization, without the organization.
type ImagePath struct {
	OrganizationPath
	Image string `path:"image" maxLength:"200" doc:"Without ACCOUNT/ORGANIZATION/; a / in it is written %2F" example:"hello"`
	Tag   string `query:"tag" maxLength:"160" doc:"Tag or digest; left out, the whole repository goes"`
}

var (
	imageName      = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	imageReference = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|sha256:[a-f0-9]{64})$`)
)

func (a *API) imageOperations() {
	const list = "/v1/accounts/{account}/organizations/{organization}/images"
	add(a, op("images.list", "GET "+list, "The images of an organization"),
		func(ctx context.Context, in *OrganizationPath) (*Output[resource.List[resource.Image]], error) {
			if _, err := find(ctx, store.Of[resource.Organization](a.store), in.key()); err != nil {
				return nil, err
			}
			images, err := a.cfg.Images.List(ctx, in.Account, in.Organization)
			return ok(listOf(images, "")), err
		})
	add(a, op("images.delete", "DELETE "+list+"/{image}", "Delete an image, or one tag of it"),
		func(ctx context.Context, in *ImagePath) (*Empty, error) {
			if _, err := find(ctx, store.Of[resource.Organization](a.store), in.key()); err != nil {
				return nil, err
			}
			if !imageName.MatchString(in.Image) {
				return nil, missing("image", in.Image)
			}
			if in.Tag != "" && !imageReference.MatchString(in.Tag) {
				return nil, invalid("query.tag", "neither a tag nor a digest", "")
			}
			err := a.cfg.Images.Delete(ctx, in.key()+"/"+in.Image, in.Tag)
			if errors.Is(err, store.ErrNotFound) {
				return nil, missing("image", in.Image)
			}
			return &Empty{}, err
		})
}
