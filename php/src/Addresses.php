<?php

declare(strict_types=1);

namespace Chatws;

/**
 * The push ports of one and the same chatws, and which of them is next. That is the one that worked last: in this
 * process, or, where nothing outlives a request, in the last one that wrote it into the spool's directory.
 *
 * @internal
 */
final class Addresses
{
    /** @var array<string, int> by the setting: the position of the one that is next, for all clients of the process */
    private static array $next = [];

    /** @var non-empty-list<string> */
    public readonly array $all;
    /** What the spool's directory remembers. */
    private ?string $remembered = null;

    /** @param string $setting one address, or several with commas between them */
    public function __construct(private readonly string $setting, private readonly ?Spool $spool = null)
    {
        $this->all = array_map('trim', explode(',', $setting));
    }

    public function areSeveral(): bool
    {
        return \count($this->all) > 1;
    }

    /** The one to connect to now. */
    public function current(): string
    {
        if (!$this->areSeveral()) {
            return $this->all[0];
        }
        if (!isset(self::$next[$this->setting])) {
            $this->remembered = $this->spool?->rememberedAddress();
            self::$next[$this->setting] = (int) array_search($this->remembered ?? '', $this->all, true);
        }

        return $this->all[self::$next[$this->setting]];
    }

    /** It did what was asked: the next call, of this request or another, begins with it. */
    public function worked(string $address): void
    {
        if ($this->spool !== null && $this->areSeveral() && $address !== ($this->remembered ?? $this->all[0])) {
            $this->remembered = $address;
            $this->spool->rememberAddress($address);
        }
    }

    /** It did not: the one behind it is next, unless another client of this process was quicker to go on. */
    public function failed(string $address): void
    {
        if ($this->areSeveral() && $this->current() === $address) {
            self::$next[$this->setting] = (self::$next[$this->setting] + 1) % \count($this->all);
        }
    }
}
