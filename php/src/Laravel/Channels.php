<?php

declare(strict_types=1);

namespace Chatws\Laravel;

/**
 * Translates Laravel's channel names to audiences of chatws.
 *
 *     everyone                                    every authenticated connection
 *     conversation.456, conversations.456         the conversation's subscribers
 *     user.5, users.5, App.Models.User.5          that user's connections
 *
 * The prefixes `private-`, `private-encrypted-` and `presence-` are ignored: chatws checks the access to every
 * conversation.
 */
final class Channels
{
    /** @return array<string, int|string>|string|null `to` on the wire; null: the channel has no audience */
    public static function audience(string $channel): array|string|null
    {
        $name = self::withoutPrefix($channel);
        if ($name === 'everyone') {
            return 'everyone';
        }
        if (preg_match('/^(conversations?|users?|(?:\w+\.)+User)\.([^.]+)$/', $name, $match) !== 1) {
            return null;
        }

        return [str_starts_with($match[1], 'conversation') ? 'conversation_id' : 'user_id' => $match[2]];
    }

    /** Returns the name that Broadcast::channel() uses: `conversation.456` for `private-conversation.456`. */
    public static function withoutPrefix(string $channel): string
    {
        return preg_replace('/^(private-encrypted-|private-|presence-)/', '', $channel) ?? $channel;
    }

    /** Returns the event's name in the browser: `App.Events.OrderPaid` for a class without broadcastAs(). */
    public static function event(string $event): string
    {
        return preg_replace('/[^A-Za-z0-9_.:-]+/', '.', ltrim($event, '\\')) ?? $event;
    }
}
