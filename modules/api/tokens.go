package api

import (
	"context"
	"net/http"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// TokenPath names a join token by its public half.
type TokenPath struct {
	Token string `path:"token" maxLength:"64"`
}

func (a *API) tokenOperations() {
	add(a, operation{id: "tokens.create", method: http.MethodPost, path: "/v1/tokens", summary: "Make a token with which one machine may join, once", status: http.StatusCreated},
		func(ctx context.Context, in *struct{ Body resource.NewJoinToken }) (*Output[resource.NewJoinTokenResult], error) {
			text, token, err := a.id.CreateJoinToken(ctx, time.Duration(in.Body.TTLSeconds)*time.Second, who(ctx).Name())
			if err != nil {
				return nil, err
			}
			return &Output[resource.NewJoinTokenResult]{Status: http.StatusCreated, Body: resource.NewJoinTokenResult{
				Token: text, Command: a.cfg.JoinCommand(text), ExpiresAt: token.ExpiresAt}}, nil
		})
	add(a, operation{id: "tokens.list", method: http.MethodGet, path: "/v1/tokens", summary: "The join tokens, without their secrets"},
		func(ctx context.Context, in *Page) (*Output[resource.List[*resource.JoinToken]], error) {
			out, err := page(ctx, store.Of[resource.JoinToken](a.store), "", *in)
			if err != nil {
				return nil, err
			}
			for _, t := range out.Body.Items {
				t.SecretHash = ""
			}
			return out, nil
		})
	add(a, operation{id: "tokens.delete", method: http.MethodDelete, path: "/v1/tokens/{token}", summary: "Withdraw a join token"},
		func(ctx context.Context, in *TokenPath) (*Empty, error) {
			token, err := find(ctx, store.Of[resource.JoinToken](a.store), in.Token, "join token", in.Token)
			if err != nil {
				return nil, err
			}
			return &Empty{}, store.Of[resource.JoinToken](a.store).Delete(ctx, token)
		})
}
