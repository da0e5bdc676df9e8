package api

import (
	"context"
	"net/http"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

func (a *API) tokenOperations() {
	add(a, op("tokens.create", "POST /v1/tokens", "Make a token with which one machine may join, once").answers(http.StatusCreated),
		func(ctx context.Context, in *struct{ Body resource.NewJoinToken }) (*Output[resource.NewJoinTokenResult], error) {
			text, token, err := a.id.CreateJoinToken(ctx, time.Duration(in.Body.TTLSeconds)*time.Second, who(ctx).Name())
			if err != nil {
				return nil, err
			}
			return &Output[resource.NewJoinTokenResult]{Status: http.StatusCreated, Body: resource.NewJoinTokenResult{
				Token: text, Command: a.cfg.JoinCommand(text), ExpiresAt: token.ExpiresAt}}, nil
		})
	tokens := collection[resource.JoinToken, *resource.JoinToken]{
		api:        a,
		noun:       "join token",
		path:       "/v1/tokens",
		param:      "token",
		operations: "tokens",
		maxName:    64,
		show: func(_ context.Context, tokens ...*resource.JoinToken) error {
			for _, t := range tokens {
				t.SecretHash = ""
			}
			return nil
		},
	}
	tokens.list("The join tokens, without their secrets")
	tokens.remove("Withdraw a join token")
}
