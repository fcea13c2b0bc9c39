package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

// completionTime limits how long the shell waits for bootd.
const completionTime = 2 * time.Second

// completeObjects offers kinds for the first word and names of that kind for those after.
func (a *app) completeObjects(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if word, _, pair := strings.Cut(toComplete, "/"); pair {
		var all []string
		for _, name := range a.names(c.Context(), word) {
			all = append(all, word+"/"+name)
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) > 0 {
		return a.names(c.Context(), args[0]), cobra.ShellCompDirectiveNoFileComp
	}
	var words []string
	for _, k := range api.Kinds() {
		words = append(words, k.Plural)
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeOne offers the names of a kind for the first word.
func (a *app) completeOne(plural string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(c.Context(), plural), cobra.ShellCompDirectiveNoFileComp
	}
}

// names are those of a kind at bootd; none when bootd is not reached.
func (a *app) names(ctx context.Context, word string) []string {
	k, err := api.LookupKind(word)
	if err != nil {
		return nil
	}
	client, err := a.client()
	if err != nil {
		return nil
	}
	if ctx == nil { // cobra completes without one
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	objects, _, err := client.List(ctx, k)
	if err != nil {
		return nil
	}
	names := make([]string, len(objects))
	for i, o := range objects {
		names[i] = o.Meta().Name
	}
	return names
}
