<?php

declare(strict_types=1);

namespace Chatws\Laravel;

/**
 * Laravel's channel names, as audiences of chatws.
 *
 *     everyone                                    every authenticated connection
 *     conversation.456, conversations.456         the conversation's subscribers
 *     user.5, users.5, App.Models.User.5          that user's connections
 *
 * `private-`, `private-encrypted-` and `presence-` in front mean nothing here: who may subscribe is asked of the
 * application in any case.
 */
final class Channels
{
    /** @return array<string, int|string>|string|null as `to` on the wire; null: it stands for nobody */
    public static function audience(string $channel): array|string|null
    {
        $name = preg_replace('/^(private-encrypted-|private-|presence-)/', '', $channel) ?? $channel;
        if ($name === 'everyone') {
            return 'everyone';
        }
        if (preg_match('/^(conversations?|users?|(?:\w+\.)+User)\.([^.]+)$/', $name, $match) !== 1) {
            return null;
        }

        return [str_starts_with($match[1], 'conversation') ? 'conversation_id' : 'user_id' => $match[2]];
    }

    /** An event's name in the browser: that of a class without broadcastAs() is `App.Events.OrderPaid`. */
    public static function event(string $event): string
    {
        return preg_replace('/[^A-Za-z0-9_.:-]+/', '.', ltrim($event, '\\')) ?? $event;
    }
}
