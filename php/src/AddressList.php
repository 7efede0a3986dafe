<?php

declare(strict_types=1);

namespace Chatws;

/**
 * The push API's addresses on the nodes of one chatws, and the address to use next.
 *
 * The next address is the one that worked last. A process keeps it in memory. Under PHP-FPM and similar servers nothing
 * in memory survives a request, so the address is also kept in the spool directory, if there is one.
 *
 * @internal
 */
final class AddressList
{
    /** @var array<string, int> setting => index of the next address; shared by all clients of the process */
    private static array $next = [];

    /** @var non-empty-list<string> */
    public readonly array $all;
    /** The address that the spool directory holds. */
    private ?string $remembered = null;

    /** @param string $setting one address, or several separated by commas */
    public function __construct(private readonly string $setting, private readonly ?Spool $spool = null)
    {
        $this->all = array_map('trim', explode(',', $setting));
    }

    public function hasAlternatives(): bool
    {
        return \count($this->all) > 1;
    }

    /** Returns the address to connect to now. */
    public function current(): string
    {
        if (!$this->hasAlternatives()) {
            return $this->all[0];
        }
        if (!isset(self::$next[$this->setting])) {
            $this->remembered = $this->spool?->rememberedAddress();
            self::$next[$this->setting] = (int) array_search($this->remembered ?? '', $this->all, true);
        }

        return $this->all[self::$next[$this->setting]];
    }

    /** Stores the address in the spool directory, so that the next request starts with it. */
    public function markWorked(string $address): void
    {
        if (
            $this->spool !== null
            && $this->hasAlternatives()
            && $address !== ($this->remembered ?? $this->all[0])
        ) {
            $this->remembered = $address;
            $this->spool->rememberAddress($address);
        }
    }

    /** Moves on to the following address, unless another client of this process has already done so. */
    public function markFailed(string $address): void
    {
        if ($this->hasAlternatives() && $this->current() === $address) {
            self::$next[$this->setting] = (self::$next[$this->setting] + 1) % \count($this->all);
        }
    }
}
