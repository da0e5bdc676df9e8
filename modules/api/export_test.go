package api

// Share gives each one so much of the API from now on.
func (a *API) Share(perSecond float64, atOnce int) { a.shares = newShares(perSecond, atOnce) }
