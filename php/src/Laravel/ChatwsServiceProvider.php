<?php

declare(strict_types=1);

namespace Chatws\Laravel;

use Chatws\Client;
use Chatws\Config;
use Illuminate\Contracts\Broadcasting\Factory;
use Illuminate\Support\ServiceProvider;

/** Registers the broadcast driver `chatws`, and a connection of that name. Composer's package discovery finds it. */
final class ChatwsServiceProvider extends ServiceProvider
{
    public function register(): void
    {
        if (method_exists($this->app, 'configurationIsCached') && $this->app->configurationIsCached()) {
            return;
        }
        $config = $this->app->make('config');
        $name = 'broadcasting.connections.chatws';
        $config->set($name, $config->get($name, []) + require __DIR__ . '/../../config/chatws.php');
    }

    public function boot(): void
    {
        // The manager may come from a provider that Laravel loads later.
        $this->callAfterResolving(Factory::class, function ($manager): void {
            $manager->extend('chatws', fn ($app, array $settings) => new ChatwsBroadcaster(
                new Client(Config::fromEnv(self::clientSettings($app, $settings))),
                self::pusherApi($settings),
            ));
        });
    }

    /**
     * @param array<string, mixed> $settings
     * @return array<string, mixed>
     */
    private static function clientSettings($app, array $settings): array
    {
        unset($settings['driver'], $settings['pusher']);

        return ['logger' => $app->make('log')] + $settings;
    }

    /** @param array<string, mixed> $settings */
    private static function pusherApi(array $settings): ?PusherApi
    {
        $pusher = $settings['pusher'] ?? [];
        $missing = array_filter(['app_id', 'key', 'secret'], fn (string $name): bool => ($pusher[$name] ?? '') === '');
        if (\count($missing) === 3) {
            return null;
        }
        if ($missing !== []) {
            throw new \InvalidArgumentException(
                'config/broadcasting.php: the connection chatws lacks ' . implode(', ', $missing) . ' in pusher: '
                . 'set all of app_id, key and secret, or none',
            );
        }

        return new PusherApi(
            $pusher['url'] ?? 'http://127.0.0.1:8080',
            (string) $pusher['app_id'],
            $pusher['key'],
            $pusher['secret'],
            (float) ($pusher['timeout'] ?? 5),
        );
    }
}
